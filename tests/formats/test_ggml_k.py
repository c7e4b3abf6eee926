"""The K types: packing, special cases of spec/ggml_k.md one by one, and the order of sums in the searches."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.conformance import ggml_k_search as slow
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.ggml_blocks import ggml_block, imatrix
from refquant.conformance.ggml_k import ELEMENTS
from refquant.formats import ggml_k3, ggml_k45
from refquant.formats.ggml_k import from_planes, in_planes
from refquant.formats.ggml_search import descent_search, signed_peak, sum_from_first, sum_positions, symmetric_search
from refquant.formats.ggml_search_minimum import WEIGHTED_TRIALS, Trials, minimum_search, scale_search

TYPES = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
WITH_MINIMUM = ["q2_k", "q4_k", "q5_k"]
SYMMETRIC = ["q3_k", "q6_k", "q8_k"]


def spread_out(n):
    """n numbers of either sign over eight binades, the same everywhere."""
    unit = np.arange(1, n + 2, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32) / 2**32
    return ((unit[:n] - 0.5) * np.exp2(np.floor(unit[1:] * 8))).astype(np.float32)


def block_of(name, w, importance=None):
    """The one block of 256 weights as a struct, as ggml writes it."""
    fmt = rq.get_format(name)
    return fmt.encode_bytes(np.asarray(w, np.float32).reshape(1, 256), importance).view(fmt.type.struct)[0, 0]


def decoded(name, block):
    return rq.dequantize(np.frombuffer(block.tobytes(), np.uint8), name, (256,))


# Packing: bit b of number j, and the byte and the bit where the page draws it.


def places_of_six_bits(j, at):
    """Scale j of q4_k and q5_k with `at` = 0, minimum j with `at` = 4: [(byte, bit)] from bit 0."""
    if j < 4:
        return [(at + j, b) for b in range(6)]
    return [(4 + j, at + b) for b in range(4)] + [(at + j - 4, 6), (at + j - 4, 7)]


def places_of_q3_scale(j):
    return [(j % 8, 4 * (j // 8) + b) for b in range(4)] + [(8 + j % 4, 2 * (j // 4) + b) for b in range(2)]


def one_bit(places, b):
    byte, bit = places[b]
    expected = np.zeros((1, 12), np.uint8)
    expected[0, byte] = 1 << bit
    return expected


@pytest.mark.parametrize("b", range(6))
@pytest.mark.parametrize("j", range(8))
def test_each_bit_of_a_six_bit_scale_and_minimum_stands_where_the_page_says(j, b):
    number, nothing = np.zeros((1, 8), np.uint8), np.zeros((1, 8), np.uint8)
    number[0, j] = 1 << b
    assert_same_bits(ggml_k45.pack_scales(number, nothing), one_bit(places_of_six_bits(j, 0), b), "scale")
    assert_same_bits(ggml_k45.pack_scales(nothing, number), one_bit(places_of_six_bits(j, 4), b), "minimum")


@pytest.mark.parametrize("b", range(6))
@pytest.mark.parametrize("j", range(16))
def test_each_bit_of_a_scale_of_q3_k_stands_where_the_page_says(j, b):
    number = np.zeros((1, 16), np.uint8)
    number[0, j] = 1 << b
    assert_same_bits(ggml_k3.pack_scales(number), one_bit(places_of_q3_scale(j), b))


def every_byte_everywhere():
    """(12 · 256, 12): each byte takes every value while the others are drawn."""
    packed = np.random.default_rng(0).integers(0, 256, (12, 256, 12), np.uint8)
    packed[np.arange(12), :, np.arange(12)] = np.arange(256)
    return packed.reshape(-1, 12)


def test_twelve_bytes_hold_sixteen_six_bit_numbers_and_nothing_else():
    packed = every_byte_everywhere()
    scales, minima = ggml_k45.unpack_scales(packed)
    assert max(scales.max(), minima.max()) == 63
    assert_same_bits(ggml_k45.pack_scales(scales, minima), packed, "q4_k")
    assert_same_bits(ggml_k3.pack_scales(ggml_k3.unpack_scales(packed)), packed, "q3_k")


@pytest.mark.parametrize(("runs", "bits"), [(2, 4), (4, 2), (8, 1)])
def test_every_byte_of_codes_side_by_side_is_unpacked_and_packed_again(runs, bits):
    packed = np.arange(256, dtype=np.uint8).reshape(8, 32)
    codes = from_planes(packed, runs, bits)
    assert codes.shape == (8, runs, 32)
    assert codes.max() == 2**bits - 1
    assert_same_bits(in_planes(codes, runs, bits), packed)
    assert codes[0, 0, 5] == 5 % 2**bits  # the first run is in the lowest bits


@pytest.mark.parametrize("name", ELEMENTS)
def test_every_weight_decodes_with_its_own_sub_blocks_scale(name):
    fmt = rq.get_format(name)
    blocks = np.random.default_rng(1).integers(0, 256, (6, fmt.type.struct.itemsize), np.uint8)
    structs = blocks.view(fmt.type.struct)[:, 0]
    structs["d"] = [1, -0.375, 2.0**-24, 3e4, np.inf, np.nan]
    if "dmin" in structs.dtype.names:
        structs["dmin"] = [0.5, 0.3, -1, 2.0**-20, np.inf, 1]
    ours = rq.dequantize(blocks, name, (6, 256))
    for b, block in enumerate(blocks):
        expected = np.array([ELEMENTS[name](block.tobytes(), i) for i in range(256)])
        nan = np.isnan(expected) & np.isnan(ours[b])
        assert_same_bits(np.where(nan, 0, ours[b]), np.where(nan, 0, expected), f"{name} block {b}")
    assert len(np.unique(ours[0])) > 30


# Special cases.


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("name", [*TYPES, "q8_k"])
def test_a_block_of_zeros_is_bytes_of_zero_and_decodes_to_zero(name, zero):
    for importance in (None, np.ones(256, np.float32), np.zeros(256, np.float32)):
        block = block_of(name, np.full(256, zero), importance)
        assert not any(block.tobytes())
    assert not decoded(name, block).any()


@pytest.mark.parametrize("name", SYMMETRIC)
def test_a_zero_among_other_weights_stays_zero(name):
    w = spread_out(256)
    w[::7] = 0
    w[1::7] = -0.0
    back = rq.quantize(w, name).dequantize()
    assert not back[w == 0].any()


@pytest.mark.parametrize("name", ["q6_k", "q8_k"])
def test_negated_weights_get_the_same_codes_and_a_negated_scale(name):
    w = spread_out(512).reshape(2, 256)
    w[1] = np.round(w[1])
    for row in w:
        block, other = block_of(name, row), block_of(name, -row)
        assert other["d"] == -block["d"] != 0
        for field in set(block.dtype.names) - {"d"}:
            assert_same_bits(other[field], block[field], field)


def test_the_descent_of_q3_k_moves_codes_only_below_a_negative_peak():
    x = spread_out(16 * 200).reshape(16, 200)
    x = np.concatenate([x, -x], axis=1)
    peak = signed_peak(x)
    with np.errstate(all="ignore"):
        first = np.clip(np.rint(np.float32(-4) / peak * x), -4, 3) + 4
        _, codes = descent_search(x, 4)
    moved = (codes != first).any(axis=0)
    assert not moved[peak > 0].any()
    assert moved[peak < 0].mean() > 0.1


@pytest.mark.parametrize("name", WITH_MINIMUM)
def test_weights_above_zero_have_a_minimum_that_is_not_above_zero(name):
    far, near = np.abs(spread_out(256)) + 1, np.resize(np.arange(4, dtype=np.float32), 256)
    assert (decoded(name, block_of(name, far)) >= -0.1).all()
    assert block_of(name, far)["dmin"] >= 0
    assert block_of(name, near)["dmin"].tobytes() == b"\0\0"


@pytest.mark.parametrize(("name", "top"), [("q2_k", 15), ("q4_k", 63), ("q5_k", 63)])
def test_equal_negative_weights_are_a_minimum_alone(name, top):
    block = block_of(name, np.full(256, -0.7))
    assert block["d"].tobytes() == b"\0\0"
    assert not block["qs"].any()
    step = np.float16(np.float32(0.7) / np.float32(top))
    assert block["dmin"] == step
    assert_same_bits(decoded(name, block), np.full(256, -np.float32(step) * np.float32(top)))


@pytest.mark.parametrize(("name", "bits"), [("q2_k", 2), ("q4_k", 4), ("q5_k", 4)])
def test_equal_positive_weights_all_have_the_top_code(name, bits):
    block = block_of(name, np.full(256, 0.7))
    assert set(from_planes(block["qs"].reshape(-1, 32), 8 // bits, bits).ravel()) == {2**bits - 1}
    if name == "q5_k":
        assert (block["qh"] == 255).all()


@pytest.mark.parametrize(("name", "magnitude"), [("q3_k", 9e-16), ("q6_k", 9e-16)])
def test_a_block_below_1e_15_counts_as_zero(name, magnitude):
    assert not any(block_of(name, np.resize(np.float32([magnitude, -magnitude]), 256)).tobytes())


@pytest.mark.parametrize("name", TYPES)
def test_where_the_scale_is_too_small_to_store_the_searchs_codes_stay(name):
    fmt = rq.get_format(name)
    w = spread_out(256)
    block, small = block_of(name, w), block_of(name, w * np.float32(2.0**-36))  # d below half of 2^-24
    assert small["d"] == 0
    assert not decoded(name, small).any()
    assert any(small[field].any() for field in fmt.type.struct.names if field in ("qs", "ql", "scales"))
    assert small.tobytes() != block.tobytes()


@pytest.mark.parametrize("name", TYPES)
def test_what_the_type_cannot_store_is_refused_and_has_ggmls_bytes_all_the_same(name):
    fmt = rq.get_format(name)
    w = np.resize(spread_out(256), (2, 256))
    w[1, 7] = fmt.type.largest * 1.001
    with pytest.raises(rq.ScaleOverflowError, match=rf"{name}: .* at index \(1, 7\)"):
        rq.quantize(w, fmt)
    assert np.isinf(fmt.encode_bytes(w).view(fmt.type.struct)[1, 0]["d"])


@pytest.mark.parametrize("name", ["q3_k", "q6_k"])
def test_weights_whose_squares_overflow_get_a_scale_of_zero_from_ggml(name):
    """Sums of infinity leave NaN for a scale, which no comparison finds the largest."""
    block = block_of(name, np.resize(np.float32([1e30, -1e30, 5e29]), 256))
    assert block["d"].tobytes() == b"\0\0"
    assert not block["scales"].any()
    with pytest.raises(rq.ScaleOverflowError):
        rq.quantize(np.full(256, 1e30), name)


def test_a_negative_scale_wraps_around_in_q4_k_and_is_capped_in_q5_k():
    """With one weight of 32 that counts, a regression may fall; ggml keeps its scale modulo 256. Bytes are ggml's."""
    w = spread_out(256 * 45).reshape(45, 256)[44]
    importance = np.zeros(256, np.float32)
    importance[::32] = 1
    block = block_of("q4_k", w, importance)
    assert block["scales"].tolist() == [255, 64, 64, 85, 192, 192, 253, 250, 245, 196, 229, 163]
    error = np.square(w - decoded("q4_k", block))[::32].sum() / np.square(w[::32]).sum()
    assert error > 2  # zeros would be closer, on the very weights that count
    capped = decoded("q5_k", block_of("q5_k", w, importance))
    assert np.square(w - capped)[::32].sum() / np.square(w[::32]).sum() < 0.5


def test_a_negative_scale_may_be_moved_to_again_in_every_round():
    """The code that stands for it is never equal to it, so the sums run on: five rounds, not one."""
    x, weights = np.zeros((2, 16, 1), np.float32)
    x[14:, 0], weights[14:, 0] = [-0.015625, 0.0625], [2.0**-10, 4]
    scale, codes = scale_search(x, weights, 15)
    assert_same_bits(scale, np.array([0x3BD2117E], np.uint32).view(np.float32))  # after one round 0x3B9EC869
    assert codes[14] == 254


def test_importance_of_zero_leaves_the_first_step_of_every_sub_block():
    """No trial has a determinant above 0; and the search for the scale of the scales finds no weight, so d is 0."""
    w = spread_out(256)
    for name in WITH_MINIMUM:
        block = block_of(name, w, np.zeros(256, np.float32))
        assert block["d"] == block["dmin"] == 0
        assert not decoded(name, block).any()


def test_q8_k_adds_up_sixteen_codes_at_a_time():
    block = block_of("q8_k", spread_out(256))
    assert np.array_equal(block["bsums"], block["qs"].astype(np.int64).reshape(16, 16).sum(axis=1))
    assert {-127, 127} & set(block["qs"].tolist())


def test_q8_k_of_weights_below_its_reciprocal_is_a_scale_of_zero():
    block = block_of("q8_k", np.full(256, 1e-45))
    assert block["d"] == 0
    assert not block["qs"].any()


# The searches.


@pytest.mark.parametrize("shape", [(16, 1), (32, 1), (32, 2), (256, 1), (16, 3, 1), (16, 2, 5), (32, 3, 1000)])
def test_sums_run_from_the_first_position_to_the_last(shape):
    rng = np.random.default_rng(len(shape))
    terms = np.ldexp(rng.standard_normal(shape), rng.integers(-12, 12, shape)).astype(np.float32)
    expected = np.zeros(shape[1:], np.float32)
    for row in terms:
        expected = expected + row
    assert_same_bits(sum_positions(terms), expected)
    assert_same_bits(sum_from_first(terms), expected)
    if terms.size >= 256:
        assert (np.ascontiguousarray(terms.T).sum(axis=-1) != expected.T).any()  # NumPy's pairwise sum


def test_a_sum_of_minus_zeros_is_plus_zero_only_from_zero_on():
    terms = np.full((4, 2), -0.0, np.float32)
    assert not np.signbit(sum_positions(terms)).any()
    assert np.signbit(sum_from_first(terms)).all()


def test_the_peak_is_the_first_of_equal_magnitudes():
    x = np.float32([[1, -2, 0, np.nan], [-3, 2, -0.0, 5], [3, 1, 0, -5]])
    assert signed_peak(x).tolist() == [-3, -2, 0, 5]


def searches(x, weights):
    """The result of every search for the columns x, as a list of arrays whose last axis is the columns."""
    with np.errstate(all="ignore"):
        return [
            *symmetric_search(x, weights, 4),
            *symmetric_search(x, weights, 32),
            *descent_search(x, 4),
            *minimum_search(x, weights, 3, Trials(-0.5, 0.1, 15), np.abs),
            *minimum_search(x, weights, 15, WEIGHTED_TRIALS),
            *scale_search(np.abs(x), weights, 15),
        ]


@given(st.data())
def test_a_column_is_searched_alone_as_it_is_among_others(data):
    x = np.ascontiguousarray(data.draw(ggml_block(256)).reshape(-1, 32).T)
    weights = np.ascontiguousarray(data.draw(imatrix(256)).reshape(-1, 32).T)
    together = searches(x, weights)
    for column in (0, 7):
        one = np.s_[:, column : column + 1]
        alone = searches(np.ascontiguousarray(x[one]), np.ascontiguousarray(weights[one]))
        for a, b in zip(alone, together, strict=True):
            assert_same_bits(a[..., 0].copy(), b[..., column].copy())


def test_trials_are_float32_sums_in_order():
    assert [float(x) for x in Trials(-0.9, 0.05, 2).numerators(15)] == [
        float(np.float32(-0.9) + np.float32(0.05) * np.float32(k) + np.float32(15)) for k in range(3)
    ]
    assert len(WEIGHTED_TRIALS.numerators(15)) == 37


def test_a_block_is_found_exactly_where_a_scale_and_codes_explain_it():
    codes = np.arange(32).reshape(32, 1) % 16
    x = (codes * 0.25 - 1.5).astype(np.float32)
    scale, minimum, found = minimum_search(x, np.ones_like(x), 15, Trials(-1.0, 0.1, 20))
    assert (scale, minimum) == (0.25, -1.5)
    assert np.array_equal(found, codes)
    with np.errstate(all="ignore"):
        scale, found = symmetric_search((codes - 8) * np.float32(0.5), np.ones_like(x), 8)
    assert scale == 0.5
    assert np.array_equal(found, codes)


# The searches against their second reading.


def columns(draw_block, data):
    """Some sub-blocks of 16 and weights for them, (16, columns): as in blocks, or of few weights that count."""
    x = np.ascontiguousarray(data.draw(draw_block).reshape(-1, 16).T)
    weights = np.ascontiguousarray(data.draw(imatrix(x.size)).reshape(-1, 16).T)
    if data.draw(st.booleans()):
        weights[data.draw(st.integers(1, 15)) :] = 0
    return x, weights


BLOCKS = st.one_of(ggml_block(48), ggml_block(48, -20, 14), ggml_block(48, -30, 40))
SOME = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def assert_same_search(found, x, weights, definition):
    """A search of all columns gives what the definition gives for each."""
    for column in range(x.shape[1]):
        expected = definition(list(x[:, column]), list(weights[:, column]))
        for ours, theirs in zip(found, expected, strict=True):
            theirs = np.array(theirs, ours.dtype)
            ours = ours[..., column]
            if ours.dtype == np.float32 and np.isnan(ours) and np.isnan(theirs):
                continue
            assert_same_bits(ours.copy(), theirs, f"column {column}")


@SOME
@given(st.data(), st.sampled_from([4, 8, 16, 32]))
def test_the_search_around_zero_is_what_the_page_says(data, half):
    x, weights = columns(BLOCKS, data)
    with np.errstate(all="ignore"):
        assert_same_search(symmetric_search(x, weights, half), x, weights, lambda a, v: slow.symmetric(a, v, half))


@SOME
@given(st.data())
def test_the_descent_is_what_the_page_says(data):
    x, weights = columns(BLOCKS, data)
    x[0] = -np.abs(x).max(axis=0) * np.float32(data.draw(st.sampled_from([0.5, 1])))
    with np.errstate(all="ignore"):
        assert_same_search(descent_search(x, 4), x, weights, lambda a, v: slow.descent(a, 4))


MINIMUM = [
    (3, Trials(-0.5, 0.1, 15), np.abs),
    (15, Trials(-1.0, 0.1, 20), np.square),
    (3, WEIGHTED_TRIALS, np.square),
    (31, WEIGHTED_TRIALS, np.square),
]


@SOME
@given(st.data(), st.sampled_from(MINIMUM))
def test_the_search_with_a_minimum_is_what_the_page_says(data, how):
    x, weights = columns(BLOCKS, data)
    top, trials, loss = how
    definition = (trials.first, trials.step, trials.last)
    with np.errstate(all="ignore"):
        found = minimum_search(x, weights, top, trials, loss)
        assert_same_search(found, x, weights, lambda a, v: slow.minimum(a, v, top, definition, loss))


@SOME
@given(st.data(), st.sampled_from([15, 63]))
def test_the_search_for_a_scale_of_scales_is_what_the_page_says(data, top):
    x, weights = columns(BLOCKS, data)
    if data.draw(st.booleans()):
        x = np.abs(x)
    with np.errstate(all="ignore"):
        assert_same_search(scale_search(x, weights, top), x, weights, lambda a, v: slow.scale_of_scales(a, v, top))
