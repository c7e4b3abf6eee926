"""The IQ2 and IQ3 types: signs, neighbours, special cases of spec/ggml_iq.md one by one, and ggml's own bytes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.ggml_blocks import ggml_rows, imatrix
from refquant.conformance.ggml_iq import ELEMENTS
from refquant.formats.ggml_grid import grid, grid_points
from refquant.formats.ggml_nearest import NONE, nearest_neighbours
from refquant.formats.ggml_signs import even_signs, multipliers, split_even_signs, split_signs

IQ2 = ["iq2_xxs", "iq2_xs", "iq2_s"]
IQ3 = ["iq3_xxs", "iq3_s"]
TYPES = IQ2 + IQ3
EVEN = ["iq2_xxs", "iq2_xs", "iq3_xxs"]
DEMANDING = ["iq2_xxs", "iq2_xs"]
ONES = np.ones(256, np.float32)

types = pytest.mark.parametrize("name", TYPES)


def spread_out(n):
    """n numbers of either sign over eight binades, the same everywhere."""
    unit = np.arange(1, n + 2, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32) / 2**32
    return ((unit[:n] - 0.5) * np.exp2(np.floor(unit[1:] * 8))).astype(np.float32)


def struct_of(name, w, importance=ONES):
    """The one block of 256 weights as a struct."""
    fmt = rq.get_format(name)
    return fmt.encode_bytes(np.asarray(w, np.float32).reshape(1, 256), importance).view(fmt.type.struct)[0, 0]


def decoded(name, stored):
    stored = np.frombuffer(stored.tobytes(), np.uint8)
    return rq.dequantize(stored, name, (len(stored) // rq.get_format(name).type.struct.itemsize * 256,))


# Signs.


def test_seven_bits_stand_for_every_byte_with_an_even_number_of_bits():
    assert sorted(even_signs().tolist()) == [byte for byte in range(256) if byte.bit_count() % 2 == 0]
    for code, byte in enumerate(even_signs().tolist()):
        assert byte & 127 == code


def test_even_signs_are_the_table_of_ggml():
    # ksigns_iq2xs of ggml/src/ggml-common.h: its first sixteen and its last eight bytes.
    assert even_signs()[:16].tolist() == [0, 129, 130, 3, 132, 5, 6, 135, 136, 9, 10, 139, 12, 141, 142, 15]
    assert even_signs()[120:].tolist() == [120, 249, 250, 123, 252, 125, 126, 255]


def test_each_bit_of_each_byte_is_the_sign_of_its_weight():
    for byte in range(256):
        assert multipliers()[byte].tolist() == [-1.0 if byte >> i & 1 else 1.0 for i in range(8)]


def test_signs_of_every_kind_of_group_are_split_off():
    w = multipliers().T * np.arange(1, 9, dtype=np.float32)[:, None]  # (8, 256), every byte once
    magnitudes, signs = split_signs(w)
    assert_same_bits(magnitudes, np.abs(w))
    np.testing.assert_array_equal(signs, [np.arange(256)])


def test_minus_zero_has_no_sign():
    magnitudes, signs = split_signs(np.full((8, 1), -0.0, np.float32))
    assert not signs.any()
    assert_same_bits(magnitudes, np.zeros((8, 1), np.float32))


@given(st.integers(0, 255), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_an_odd_number_of_signs_is_made_even_at_the_first_least_important_weight(byte, sizes):
    w = (multipliers()[byte] * np.array(sizes, np.float32)).reshape(8, 1)
    weights = np.arange(8, 0, -1, dtype=np.float32).reshape(8, 1)
    magnitudes, signs = split_even_signs(w, weights)
    expected = sum(1 << i for i in range(8) if w[i, 0] < 0)
    flipped = None
    if expected.bit_count() % 2:
        flipped = min(range(8), key=lambda i: (float(weights[i, 0]) * float(w[i, 0]) ** 2, i))
        expected ^= 1 << flipped
    assert signs[0, 0] == expected
    assert magnitudes[:, 0].tolist() == [-size if i == flipped else size for i, size in enumerate(sizes)]


# Neighbours.


def slow_nearest(points, candidates, x, roots, scale):
    """The first candidate of least distance, number by number in float32."""
    best, nearest = np.finfo(np.float32).max, NONE
    for j in candidates:
        distance = np.float32(0)
        for code, xi, root in zip(points[j], x, roots, strict=True):
            delta = scale * np.float32(2 * code + 1) - xi
            distance += root * delta * delta
        if distance < best:
            best, nearest = distance, j
    return nearest


@pytest.mark.parametrize("name", TYPES)
def test_the_nearest_neighbour_is_the_first_of_least_weighted_distance(name):
    g, rng = grid(name), np.random.default_rng(len(name))
    key = rng.choice(np.flatnonzero(g.index < 0), 40)
    x = (rng.random((40, g.width)) * 2 * g.levels).astype(np.float32)
    roots = rng.choice([0, 1, 2, 0.3], (40, g.width)).astype(np.float32)
    x[:10], roots[:10] = np.rint(x[:10]), 1  # ties
    roots[10:15] = 0  # nothing but ties
    scale = rng.choice(np.array([1, 0.5, 1.25], np.float32), 40)
    found = nearest_neighbours(g, key, np.hstack([x, roots]), scale)
    for i, k in enumerate(key):
        candidates = g.neighbours[g.first[k] : g.first[k] + g.count[k]]
        assert found[i] == slow_nearest(g.points, candidates, x[i], roots[i], scale[i])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_distances_that_overflow_or_are_not_numbers_have_no_nearest():
    g = grid("iq2_xs")
    key = np.flatnonzero(g.index < 0)[:3]
    groups = np.ones((3, 16), np.float32)
    groups[0, :8] = 1e30
    groups[1, 8:] = np.nan
    found = nearest_neighbours(g, key, groups, np.ones(3, np.float32))
    assert found[0] == found[1] == NONE
    assert found[2] != NONE


# Decoding.


@types
def test_every_grid_point_and_sign_decodes_to_what_the_page_says(name):
    fmt = rq.get_format(name)
    count = len(grid_points(name)) * grid_points(name).shape[1] // 256
    blocks = np.random.default_rng(count).integers(0, 256, (count, fmt.type.struct.itemsize), np.uint8)
    numbers = np.arange(count * 256 // grid_points(name).shape[1]) % len(grid_points(name))
    view = blocks.view(fmt.type.struct)[:, 0]
    if name == "iq2_xs":
        view["qs"] = view["qs"] & 0xFE00 | numbers.reshape(count, 32)
    elif name == "iq2_s":
        view["qs"][:, :32] = numbers.reshape(count, 32) & 255
        shifts = np.arange(0, 8, 2)
        view["qh"] = ((numbers.reshape(count, 8, 4) >> 8) << shifts).sum(axis=-1)
    elif name == "iq3_s":
        view["qs"] = numbers.reshape(count, 64) & 255
        view["qh"] = np.packbits(numbers.reshape(count, 64) >> 8, axis=1, bitorder="little")
    elif name == "iq3_xxs":
        view["qs"][:, :64] = numbers.reshape(count, 64)
    else:
        words = numbers.reshape(count, 8, 4).astype(np.uint8).view("<u2")
        view["qs"].reshape(count, 8, 4)[:, :, :2] = words
    view["d"] = np.float16(0.5) * np.arange(1, count + 1)
    found = rq.dequantize(blocks.ravel(), name, (count * 256,)).reshape(count, 256)
    expected = np.array([[ELEMENTS[name](block.tobytes(), i) for i in range(256)] for block in blocks])
    assert_same_bits(found, expected)


@types
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_stored_scales_that_are_not_finite_decode_by_ieee_arithmetic(name):
    fmt = rq.get_format(name)
    block = np.zeros(1, fmt.type.struct)
    block["d"] = np.inf
    assert np.isposinf(decoded(name, block)).all()
    block["d"] = np.nan
    assert np.isnan(decoded(name, block)).all()


# Encoding: special cases of the page.


@types
def test_a_block_of_zeros_is_all_zero_bytes(name):
    for zero in (0.0, -0.0):
        block = struct_of(name, np.full(256, zero))
        assert not any(block.tobytes())
        assert_same_bits(decoded(name, block), np.zeros(256, np.float32))


@types
def test_a_zero_beside_other_weights_does_not_stay_zero(name):
    w = spread_out(256)
    w[::32] = 0
    assert (decoded(name, struct_of(name, w)) != 0).all()


@pytest.mark.parametrize("name", ["iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs"])
def test_an_empty_sub_block_decodes_to_d(name):
    w = spread_out(256)
    w[64:96] = 0
    block = struct_of(name, w)
    found = decoded(name, block)
    assert_same_bits(found[64:96], np.full(32, np.float32(block["d"])))
    w[64:96] = 1e-16  # below every limit
    assert struct_of(name, w).tobytes() == block.tobytes()


def test_runs_behind_an_empty_one_are_stored_one_run_too_early_in_iq3_s():
    w = spread_out(256)
    whole = struct_of("iq3_s", w)
    w[32:64] = 0
    shifted = struct_of("iq3_s", w)
    np.testing.assert_array_equal(shifted["qs"].reshape(8, 8)[:7], np.delete(whole["qs"].reshape(8, 8), 1, axis=0))
    np.testing.assert_array_equal(
        shifted["signs"].reshape(8, 4)[:7], np.delete(whole["signs"].reshape(8, 4), 1, axis=0)
    )
    assert not shifted["qs"][56:].any()
    assert not shifted["signs"][28:].any()
    np.testing.assert_array_equal(shifted["qh"], np.where(np.arange(8) == 1, 0, whole["qh"]))


def test_runs_of_subnormal_weights_are_not_empty_in_iq3_s_alone():
    w = np.full(256, -1e-40)
    assert struct_of("iq3_s", w, None)["signs"].tolist() == [255] * 32
    for name in ("iq2_s", "iq3_xxs"):
        assert not any(struct_of(name, w, None).tobytes())


@types
def test_importance_zero_throughout_is_not_a_division_by_zero(name):
    block = struct_of(name, spread_out(256), np.zeros(256, np.float32))
    assert np.isfinite(decoded(name, block)).all()
    if name == "iq2_xxs":
        assert not any(block.tobytes())
    elif name == "iq3_s":  # rounded once more, though nothing tells points from each other
        assert block["qs"].any()
    else:
        mask, count = {"iq2_xs": (511, 32), "iq2_s": (255, 32), "iq3_xxs": (255, 64)}[name]
        points = block["qs"][:count] & mask
        assert not points.any()
        assert block["d"] > 0


@pytest.mark.parametrize("name", EVEN)
def test_a_negative_scale_is_stored_positive_with_all_signs_changed(name):
    # The weight that is flipped to make the signs even has the least w·x², and yet outweighs the others in w·x.
    w, importance = np.zeros(256), np.full(256, 2.0**-19, np.float32)
    w[:32] = 1
    w[0], importance[0] = -(2.0**-10), 1
    importance[16:32] = 2.0**-22
    found = decoded(name, struct_of(name, w, importance))
    assert (found[:8] < 0).all()


@pytest.mark.parametrize("name", DEMANDING)
def test_an_importance_matrix_is_demanded(name):
    with pytest.raises(rq.RefquantError, match=f"{name}: no importance matrix given"):
        rq.quantize(spread_out(256), name)


@types
def test_a_scale_beyond_float16_is_refused_with_its_block(name):
    w = spread_out(1024).reshape(2, 512)
    w[1, 300] = 1e8
    with pytest.raises(rq.ScaleOverflowError, match=r"the block that starts at index \(1, 256\) needs a scale 'd'"):
        rq.quantize(w, name, imatrix=np.ones(512, np.float32))
    rq.get_format(name).encode_bytes(w, np.ones(512, np.float32))


@types
def test_weights_whose_squares_overflow_are_refused_with_their_block(name):
    w = spread_out(1024).reshape(2, 512)
    w[1, 256:] *= np.float32(1e25)
    message = r"starts at index \(1, 256\): .* and ggml aborts there"
    if name == "iq2_xxs":  # ggml takes its sums of NaN for an empty sub-block
        message = r"at index \(1, 256\), .* beyond what the type stores \(at most 5.76460752e\+17\)"
    with pytest.raises(rq.RefquantError, match=message):
        rq.quantize(w, name, imatrix=np.ones(512, np.float32))


@types
@settings(max_examples=10)
@given(data=st.data())
def test_what_becomes_of_a_block_does_not_depend_on_the_others(name, data):
    w = data.draw(ggml_rows(256, -20, 8))
    importance = data.draw(imatrix(w.shape[1]).filter(lambda c: c.max() < 2.0**30))
    fmt = rq.get_format(name)
    together = fmt.encode_bytes(w, importance).reshape(-1, fmt.type.struct.itemsize)
    columns = np.resize(importance, w.size).reshape(-1, 256)
    for block, c, expected in zip(w.reshape(-1, 256), columns, together, strict=True):
        np.testing.assert_array_equal(fmt.encode_bytes(block, c), expected)


@types
def test_changing_all_signs_changes_those_of_the_result(name):
    w = spread_out(512).reshape(1, 512)
    importance = np.abs(spread_out(600)[88:])
    one, other = (rq.quantize(sign * w, name, imatrix=importance).dequantize() for sign in (1, -1))
    assert_same_bits(one, -other)


@types
def test_a_power_of_four_scales_the_result_exactly(name):
    w, importance = spread_out(512).reshape(1, 512), np.abs(spread_out(600)[88:])
    one = rq.quantize(w, name, imatrix=importance).dequantize()
    other = rq.quantize(w / 16, name, imatrix=importance).dequantize()
    assert_same_bits(one / 16, other)


@types
def test_the_result_is_nearer_than_that_of_grid_points_by_sign_alone(name):
    w = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    q = rq.quantize(w, name, imatrix=np.ones(512, np.float32))
    assert rq.error(w, q).sqnr_db > {"iq2_xxs": 8, "iq2_xs": 9, "iq2_s": 10.5, "iq3_xxs": 13, "iq3_s": 16}[name]


# SHA-256 of what ggml_quantize_chunk of ggml 0.25.3 writes for 16 rows of 768, spread_out(12288), and the importance
# abs(spread_out(845)[77:]).
BYTES_OF_GGML = [
    ("iq2_xxs", True, "71a765632aaa966869c9f0ebcecd577202ad2f614a13ce54a279ae252dba5be2"),
    ("iq2_xs", True, "d2347e207509260196560477cb520a5dbadd8e512078304649246447009f2c46"),
    ("iq2_s", False, "4225cc2369b6d43570efd992efb08f8b641733d8fb6d96a756c4a2993d15a5ec"),
    ("iq2_s", True, "760a935d9c7803dac7205c4c321792d67aa41289636a11d141136ed74d96207a"),
    ("iq3_xxs", False, "50fd924a35ff4c56309ec933d1e9c3e35cf9eeb606a3b9641220f8b4e75c63e1"),
    ("iq3_xxs", True, "60043228a8f6d1843c0edaf7bce5ab22e3050fd83a99b8a0565fea3e5449caa0"),
    ("iq3_s", False, "3462a8be8181a7e0ecfac83138b06af754f130abb7eeca3d0857122ce07cc2ec"),
    ("iq3_s", True, "3e1be7e5380245293cdfb55aa8468bd4e4fe4dd803110f9607284264891843e1"),
]


@pytest.mark.parametrize(("name", "weighted", "digest"), BYTES_OF_GGML)
def test_bytes_are_those_of_ggml(name, weighted, digest):
    w, importance = spread_out(16 * 768).reshape(16, 768), np.abs(spread_out(845)[77:])
    q = rq.quantize(w, name, imatrix=importance if weighted else None)
    assert hashlib.sha256(q.parts["blocks"].tobytes()).hexdigest() == digest
