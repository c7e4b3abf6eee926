"""iq4_nl and iq4_xs: the special cases of spec/ggml_iq4.md, one by one. Their bytes against ggml's: tests/peers."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.definitions import f32
from refquant.conformance.ggml_iq4 import ELEMENTS
from refquant.formats.ggml import structs
from refquant.formats.ggml_iq4 import VALUES, _nearest

NAMES = ["iq4_nl", "iq4_xs"]
SIZE = {"iq4_nl": 32, "iq4_xs": 256}


def encoded(w, name, imatrix=None):
    """The structs that ggml writes, also where a scale overflows."""
    fmt = rq.get_format(name)
    stored = fmt.encode_bytes(np.asarray(w, np.float32), None if imatrix is None else np.asarray(imatrix, np.float32))
    return structs({"blocks": stored}, fmt)


def codes(blocks):
    """The code of every weight, (blocks, block_size)."""
    runs = blocks["qs"].reshape(len(blocks), -1, 16)
    return np.concatenate([runs & 15, runs >> 4], axis=-1).reshape(len(blocks), -1)


def sums(terms):
    total = 0.0
    for term in terms:
        total = f32(total + term)
    return total


def near(u):
    return 15 - sum(u < (a + b) / 2 for a, b in pairwise(map(float, VALUES)))


def searched(x, weight):
    """Q3 … Q6 for one run, in Python numbers: its scale."""
    peak = max(x, key=abs)  # the first of equal ones
    inverses = [f32(1 / f32(peak / 127)), *(f32((k - 127) / peak) for k in range(-7, 8))]
    scale, best = 0.0, 0.0
    for first, inverse in zip([True] + [False] * 15, inverses, strict=True):
        q = [float(VALUES[near(f32(inverse * v))]) for v in x]
        a = sums(f32(f32(w * c) * v) for w, c, v in zip(weight, q, x, strict=True))
        b = sums(f32(f32(w * c) * c) for w, c in zip(weight, q, strict=True))
        if first or (b > 0 and f32(a * a) > f32(best * b)):
            scale = f32(a / b) if b > 0 else 0.0
            best = f32(scale * a)
    return scale


@pytest.mark.parametrize("weighs", [False, True])
def test_the_scale_and_codes_of_a_run_are_the_page_s(weighs):
    rng = np.random.default_rng(8)
    w = (rng.normal(size=(36, 32)) * np.exp(rng.normal(size=(36, 1)))).astype(np.float32)
    w[:9] = rng.integers(-4, 5, (9, 32)) / 4
    importance = rng.chisquare(1, 32).astype(np.float32) if weighs else None
    blocks = encoded(w, "iq4_nl", importance).reshape(-1)
    for row, d, found in zip(w, blocks["d"], codes(blocks), strict=True):
        x = [float(v) for v in row]
        weight = [f32(v * v) for v in x]
        if weighs:
            sigma2 = f32(sums(weight) / 16)
            weight = [f32(float(i) * f32(math.sqrt(f32(sigma2 + v)))) for i, v in zip(importance, weight, strict=True)]
        scale = searched(x, weight)
        assert d == np.float16(scale)
        assert found.tolist() == [near(f32(f32(1 / scale) * v)) for v in x]


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_as_the_page_defines(name):
    fmt = rq.get_format(name)
    size = fmt.type.struct.itemsize

    @settings(max_examples=30)
    @given(st.binary(min_size=size, max_size=size))
    def check(block):
        decoded = rq.dequantize(np.frombuffer(block, np.uint8), fmt, (fmt.block_size,))
        expected = np.array([ELEMENTS[name](block, i) for i in range(fmt.block_size)], np.float32)
        nan = np.isnan(decoded) & np.isnan(expected)
        assert_same_bits(np.where(nan, 0, decoded), np.where(nan, 0, expected))

    check()


def test_a_block_of_iq4_nl_by_hand():
    qs = bytes(range(0xF0, 0x100))  # weight j has code j, weight j + 16 code 15
    block = np.frombuffer(np.float16(0.5).tobytes() + qs, np.uint8)
    expected = np.float32(0.5) * np.append(VALUES, np.full(16, 113, np.float32))
    assert_same_bits(rq.dequantize(block, "iq4_nl", (32,)), expected)


def test_six_bits_of_every_run_s_scale_are_found_in_their_places():
    scales = np.array([-32, -31, -1, 0, 1, 2, 30, 31])
    stored = scales + 32
    high = sum(int(s) >> 4 << 2 * k for k, s in enumerate(stored))
    low = bytes(int(stored[k]) & 15 | (int(stored[k + 1]) & 15) << 4 for k in range(0, 8, 2))
    raw = np.float16(0.25).tobytes() + high.to_bytes(2, "little") + low + b"\x99" * 128  # code 9: 13
    decoded = rq.dequantize(np.frombuffer(raw, np.uint8), "iq4_xs", (256,))
    assert_same_bits(decoded, np.repeat(scales * np.float32(0.25) * np.float32(13), 32).astype(np.float32))


def test_at_a_midpoint_the_higher_value_is_nearest():
    midpoints = (VALUES[:-1] + VALUES[1:]) / np.float32(2)
    below, above = np.nextafter(midpoints, np.float32(-999)), np.nextafter(midpoints, np.float32(999))
    assert _nearest(below).tolist() == list(range(15))
    assert _nearest(midpoints).tolist() == list(range(1, 16))
    assert _nearest(above).tolist() == list(range(1, 16))


def test_zero_is_nearest_to_one_and_nan_to_the_largest_value():
    numbers = np.array([0.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    assert _nearest(numbers).tolist() == [8, 8, 15, 0, 15]


@pytest.mark.parametrize("zero", [0.0, -0.0, 9e-16, -1e-40])
def test_a_block_of_zeros_has_codes_8_and_iq4_xs_stores_minus_zero(zero):
    nl = rq.quantize(np.full(32, zero, np.float32), "iq4_nl")
    assert nl.parts["blocks"].tobytes().hex() == "0000" + "88" * 16
    assert_same_bits(nl.dequantize(), np.zeros(32, np.float32))
    xs = rq.quantize(np.full(256, zero, np.float32), "iq4_xs")
    assert xs.parts["blocks"].tobytes().hex() == "0080" + "aaaa" + "00000000" + "88" * 128
    assert_same_bits(xs.dequantize(), -np.zeros(256, np.float32))


def test_zero_beside_others_does_not_stay_zero():
    w = np.linspace(-1, 1, 33, dtype=np.float32)[:-1]
    assert w[16] == 0
    q = rq.quantize(w, "iq4_nl")
    scale = np.float32(structs(q.parts, q.format)["d"][0])
    assert q.dequantize()[16] == scale != 0


def test_an_equal_block_gets_one_code_and_which_one_rounding_decides():
    for name in NAMES:
        for v, code in ((1.0, 15), (-1.0, 15), (3e-5, 0)):
            assert (codes(encoded(np.full(256, v), name)) == code).all()
    assert encoded(np.full(32, 1.0), "iq4_nl")["d"][0] == np.float16(1 / 113)
    assert encoded(np.full(256, 1.0), "iq4_xs")["d"][0] == -np.float16(1 / 113 / 32)
    assert encoded(np.full(256, 1.0), "iq4_xs")["scales_h"][0] == 0  # every run has −32
    assert encoded(np.full(256, -1.0), "iq4_xs")["d"][0] == np.float16(1 / 113 / 32)


def test_what_is_on_the_values_is_kept():
    w = np.tile(VALUES, 2) * np.float32(0.5)
    assert_same_bits(rq.quantize(w, "iq4_nl").dequantize(), w)
    assert_same_bits(rq.quantize(-w, "iq4_nl").dequantize(), -w)  # by a negative scale
    blocks = np.tile(w, 8) * np.repeat(np.float32([32, -31, 16, 1, 2, 3, -4, 5]), 32)
    assert_same_bits(rq.quantize(blocks, "iq4_xs").dequantize(), blocks)


def test_a_run_far_below_the_largest_is_lost_in_iq4_xs():
    w = np.ones(256, np.float32)
    w[32:64] = np.linspace(-1, 1, 32) * 1e-3
    blocks = encoded(w, "iq4_xs")
    assert blocks["scales_l"][0, 0] >> 4 == 0
    assert blocks["scales_h"][0] >> 2 & 3 == 2
    assert (codes(blocks)[0, 32:64] == 8).all()
    assert_same_bits(rq.quantize(w, "iq4_xs").dequantize()[32:64], -np.zeros(32, np.float32))


def test_codes_are_chosen_for_the_scale_before_its_rounding():
    w = np.tile(VALUES, 2) * np.float32(2.0**-25)  # as float16 the scale is half a step: 0
    (block,) = encoded(w, "iq4_nl")
    assert block["d"] == 0
    assert codes(block[None]).tolist() == [[*range(16)] * 2]


def test_an_importance_moves_the_scale_to_the_weights_that_count():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(64, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 4 == 0, 100, 0.01).astype(np.float32)
    for name in NAMES:
        plain = (rq.quantize(w, name).dequantize() - w) ** 2
        weighted = (rq.quantize(w, name, imatrix=importance).dequantize() - w) ** 2
        assert (weighted * importance).sum() < 0.95 * (plain * importance).sum()


@pytest.mark.parametrize("name", NAMES)
def test_without_any_importance_a_run_counts_as_zero(name):
    importance = np.ones(256, np.float32)
    importance[64:96] = 0
    blocks = encoded(np.ones((1, 256)), name, importance)
    assert (codes(blocks.reshape(-1)).reshape(256)[64:96] == 8).all()
    none = encoded(np.ones((1, 256)), name, np.zeros(256)).reshape(-1)
    assert (none["d"] == 0).all()


def test_scales_beyond_float16_are_refused_with_their_block():
    for name, largest in (("iq4_nl", 65504 * 100), ("iq4_xs", 65504 * 32 * 100)):
        w = np.zeros((2, 256), np.float32)
        w[1, SIZE[name] % 256 :] = np.float32(largest)
        rq.quantize(w, name)
        with pytest.raises(
            rq.ScaleOverflowError, match=rf"starts at index \(1, {SIZE[name] % 256}\) needs a scale 'd'"
        ):
            rq.quantize(w * np.float32(2), name)


def test_squares_that_overflow_leave_ggml_s_bytes():
    (block,) = encoded(np.full(32, 1e30), "iq4_nl")  # ∞ / ∞
    assert np.isnan(block["d"])
    assert (codes(block[None]) == 15).all()
    xs = encoded(np.full(256, 1e30), "iq4_xs")
    assert xs.tobytes().hex() == "0080" + "aaaa" + "00000000" + "88" * 128


def test_the_first_of_two_peaks_is_tried():
    halves = [8, -8, 5, 2, 0, -3, -2, -6, -6, -6, -4, 4, 2, 5, 0, 1, 6, 3, 2, 1, 1, 6, -3, 4, 2, -6, -1, 5, 1, -6, 3, 3]
    w = np.array(halves, np.float32) / np.float32(2)
    swapped = w[[1, 0, *range(2, 32)]]
    assert encoded(w, "iq4_nl")["d"] < 0 < encoded(swapped, "iq4_nl")["d"]


@pytest.mark.parametrize("name", NAMES)
def test_negated_weights_keep_their_codes_and_negate_the_scale(name):
    w = np.random.default_rng(4).normal(size=(20, 256)).astype(np.float32)
    importance = np.random.default_rng(5).chisquare(1, 256).astype(np.float32)
    some, negated = encoded(w, name, importance), encoded(-w, name, importance)
    assert_same_bits(some["qs"], negated["qs"])
    assert_same_bits(some["d"], -negated["d"])


def test_blocks_do_not_depend_on_each_other():
    rng = np.random.default_rng(2)
    w = (rng.normal(size=(40, 512)) * np.exp(rng.normal(size=(40, 1)) * 3)).astype(np.float32)
    importance = rng.chisquare(1, 512).astype(np.float32)
    for name in NAMES:
        together = rq.quantize(w, name, imatrix=importance).parts["blocks"]
        alone = np.stack([rq.quantize(row, name, imatrix=importance).parts["blocks"] for row in w])
        assert_same_bits(together, alone)
        size = SIZE[name]
        last = rq.quantize(w[:, -size:], name, imatrix=importance[-size:]).parts["blocks"]
        assert_same_bits(together[:, -last.shape[1] :], last)
