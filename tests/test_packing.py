"""Packed codes: a little-endian bit stream a row (spec/packing.md)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.packing import pack, packed_length, unpack

ROWS = st.tuples(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=70))


@given(ROWS)
def test_a_packed_row_read_as_one_little_endian_number_has_each_code_at_its_place(drawn):
    bits, row = drawn
    codes = np.array(row, np.uint8) & np.uint8((1 << bits) - 1)
    number = sum(int(code) << i * bits for i, code in enumerate(codes))
    assert pack(codes, bits).tobytes() == number.to_bytes(packed_length(len(row), bits), "little")


@given(ROWS, st.integers(0, 255))
def test_unpacking_gives_the_codes_back_whatever_the_bits_left_over(drawn, noise):
    bits, row = drawn
    codes = np.array(row, np.uint8) & np.uint8((1 << bits) - 1)
    packed = pack(codes, bits)
    spare = 8 * packed.size - bits * codes.size
    if spare:
        packed[-1] |= np.uint8((noise << 8 - spare) & 0xFF)
    assert unpack(packed, bits, codes.size).tolist() == codes.tolist()


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_survives_beside_every_neighbour(bits):
    n = 1 << min(bits, 6)
    pairs = np.stack(np.meshgrid(np.arange(n), (1 << bits) - 1 - np.arange(n)), -1).reshape(-1, 2).astype(np.uint8)
    for offset in range(4):  # the pair at four places in the stream
        rows = np.zeros((len(pairs), 9), np.uint8)
        rows[:, offset : offset + 2] = pairs
        np.testing.assert_array_equal(unpack(pack(rows, bits), bits, 9), rows)


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (4, [0x1, 0xE, 0x3], "e103"),  # the first code is the low nibble; a short row ends on a byte
        (2, [0, 1, 2, 3, 1], "e401"),
        (8, [0, 255, 128], "00ff80"),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], "d1581f"),  # 000 111 110 101 100 011 010 001, read from the right
        (1, [1, 0, 0, 0, 0, 0, 0, 0, 1], "0101"),
        (5, [31], "1f"),
        (7, [], ""),
    ],
)
def test_the_examples_of_the_page(bits, codes, expected):
    assert pack(np.array(codes, np.uint8), bits).tobytes().hex() == expected


def test_rows_are_packed_each_on_its_own():
    codes = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5) & 7
    packed = pack(codes, 3)
    assert packed.shape == (2, 3, 2)
    assert packed[1, 2].tobytes() == pack(codes[1, 2], 3).tobytes()
    assert pack(codes[:0], 3).shape == (0, 3, 2)
    assert pack(codes[..., :0], 3).shape == (2, 3, 0)
