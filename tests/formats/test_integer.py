"""Integers: the special cases of spec/integer.md, one by one. The general properties are in test_properties.py."""

import numpy as np
import pytest

import refquant as rq
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.bounds import error_bound
from refquant.formats.integer import Integer
from refquant.packing import pack, unpack

FLOAT32_MAX = np.finfo(np.float32).max


def codes_of(q):
    return unpack(q.parts["codes"], q.format.bits, q.shape[-1])


def test_the_formulas_of_the_page_by_hand():
    w = np.array([1.75, -0.5, 0.25, 1.0, -1.75, 0.0, 0.7, -1.25], np.float32)
    q = rq.quantize(w, "int4-row")  # s = 1.75 / 7 = 0.25; w / s = 7, −2, 1, 4, −7, 0, 2.8, −5
    assert q.parts["scales"].tolist() == [0.25]
    assert codes_of(q).tolist() == [7, 14, 1, 4, 9, 0, 3, 11]  # two's complement
    assert q.parts["codes"].tobytes().hex() == "e74109b3"
    assert q.dequantize().tolist() == [1.75, -0.5, 0.25, 1.0, -1.75, 0.0, 0.75, -1.25]


def test_asymmetric_codes_and_zero_point_by_hand():
    w = np.array([-1.0, 0.0, 0.5, 2.75], np.float32)  # s = 3.75 / 15 = 0.25, z = 4
    q = rq.quantize(w, "int4-asym")
    assert q.parts["scales"].tolist() == [0.25]
    assert q.parts["zeros"].tolist() == [4]
    assert codes_of(q).tolist() == [0, 4, 6, 15]
    assert q.dequantize().tolist() == w.tolist()


def test_ties_round_to_even_and_before_the_zero_point_is_added():
    w = np.array([7, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert codes_of(rq.quantize(w, "int4-row")).tolist() == [7, 0, 2, 2, 0, 14]
    w = np.array([-1, 14, 0.5, 1.5, 2.5, -0.5], np.float32)  # s = 1, z = 1
    assert codes_of(rq.quantize(w, "int4-row-asym")).tolist() == [0, 15, 1, 3, 3, 1]


def test_the_quotient_is_a_division_and_not_a_product_with_the_reciprocal():
    steps = np.linspace(1, 2, 500, dtype=np.float32)[:, None]
    w = np.append(np.arange(127, dtype=np.float32) + np.float32(0.5), np.float32(127)) * steps  # ties, or next to ties
    q = rq.quantize(w, "int8-row")
    scale = q.parts["scales"]
    by_division, by_reciprocal = np.rint(w / scale), np.rint(w * (np.float32(1) / scale))
    assert (by_division != by_reciprocal).any(), "the example must tell the two apart"
    np.testing.assert_array_equal(codes_of(q).view(np.int8), by_division.clip(-127, 127))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_stored_code_decodes_by_the_formula(bits):
    codes = np.arange(1 << bits, dtype=np.uint8)
    scale = np.array([0.3], np.float32)
    signed = np.where(codes >= 1 << bits - 1, codes.astype(int) - (1 << bits), codes)
    decoded = rq.dequantize({"codes": pack(codes, bits), "scales": scale}, f"int{bits}", codes.shape)
    assert_same_bits(decoded, signed.astype(np.float32) * scale)
    for zero in range(1 << bits):
        parts = {"codes": pack(codes, bits), "scales": scale, "zeros": pack(np.array([zero], np.uint8), bits)}
        decoded = rq.dequantize(parts, f"int{bits}-asym", codes.shape)
        assert_same_bits(decoded, (codes.astype(np.float32) - np.float32(zero)) * scale)


@pytest.mark.parametrize("scheme", ["int2", "int4-g3", "int8-row", "int4-asym", "int8-g3-asym-bf16"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_an_all_zero_group_has_scale_zero_and_decodes_to_plus_zero(scheme, zero):
    q = rq.quantize(np.full((2, 7), zero, np.float32), scheme)
    assert not any(part.any() for part in q.parts.values())
    assert_same_bits(q.dequantize(), np.zeros((2, 7), np.float32))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_one_sided_group_keeps_zero_in_its_range(sign):
    w = sign * np.array([1, 2, 3], np.float32)
    q = rq.quantize(w, "int2-asym")
    assert unpack(q.parts["zeros"], 2, 1).tolist() == [0 if sign > 0 else 3]
    assert_same_bits(q.dequantize(), w)  # a range of [1, 3] would need steps of ⅔ and a zero point below 0


@pytest.mark.parametrize("value", [1.0, -1.0, 1e-30, 0.1])
@pytest.mark.parametrize("scheme", ["int3", "int3-asym", "int8-row", "int8-row-asym"])
def test_an_all_equal_group_sits_at_one_end_of_the_range(scheme, value):
    decoded = rq.quantize(np.full((1, 5), value, np.float32), scheme).dequantize()
    largest = rq.get_format(scheme).largest_code
    expected = np.float32(largest) * (np.float32(value) / np.float32(largest))
    assert_same_bits(decoded, np.full((1, 5), expected, np.float32))


def test_group_sizes_that_do_not_divide_the_row_leave_a_shorter_last_group():
    w = np.arange(1, 11, dtype=np.float32).reshape(1, 10)
    q = rq.quantize(w, "int8-g4")
    assert q.parts["scales"].shape == (1, 3)
    assert_same_bits(q.parts["scales"], np.array([[4, 8, 10]], np.float32) / np.float32(127))


def test_a_group_longer_than_the_row_is_the_row():
    w = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    long, row = rq.quantize(w, "int5-g1000-asym"), rq.quantize(w, "int5-row-asym")
    for name in row.parts:
        assert_same_bits(long.parts[name], row.parts[name])


def test_group_size_minus_one_is_one_group_a_row_and_not_all_zeros():
    w = np.arange(1, 11, dtype=np.float32).reshape(2, 5)
    q = rq.quantize(w, "int4", group_size=-1)
    assert q.parts["scales"].shape == (2, 1)
    assert q.dequantize().all()


@pytest.mark.parametrize("scheme", ["int4", "int4-row", "int4-g8", "int4-asym", "int3-row-asym", "int5-g8-asym-f16"])
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0), (2, 0, 5)])
def test_empty_tensors_quantize_and_decode(scheme, shape):
    q = rq.quantize(np.zeros(shape, np.float32), scheme)
    assert q.dequantize().shape == shape
    assert not any(part.any() for part in q.parts.values())
    assert np.isnan(q.bits_per_weight)


def test_codes_are_computed_with_the_scale_as_stored():
    w = np.array([1.0, 0.1004], np.float32)  # 1 / 127 in bfloat16 is 0.00787; 0.1004 / it and 0.1004 / (1/127) differ
    narrow, wide = rq.quantize(w, "int8-bf16"), rq.quantize(w, "int8")
    scale = np.float32(narrow.dequantize()[0] / 127)
    assert codes_of(narrow).view(np.int8).tolist() == np.rint(w / scale).clip(-127, 127).tolist()
    assert codes_of(wide).view(np.int8)[1] == np.rint(w[1] * 127)


@pytest.mark.parametrize(
    ("scheme", "w", "scale"),
    [
        ("int2-f16", [65519.0], 65504.0),  # rounds down to the largest half
        ("int2-f16", [2.0**-25], 0.0),  # a tie between 0 and the smallest half goes to even
        ("int2-f16", [np.nextafter(np.float32(2.0**-25), np.float32(1))], 2.0**-24),
    ],
)
def test_a_float16_scale_at_the_edges_of_its_type(scheme, w, scale):
    assert rq.quantize(np.array(w, np.float32), scheme).parts["scales"].tolist() == [scale]


@pytest.mark.parametrize(
    ("scheme", "w", "message"),
    [
        ("int2-f16", [65520.0], "the scale of group 0 is 65520: a float16 scale is at most 65504"),
        ("int4-g2-f16", [1, 2, 3, 1e6], "the scale of group 1 is 142857"),
        ("int8-asym", [-FLOAT32_MAX, FLOAT32_MAX], "the scale of group 0 is inf: a float32 scale"),
        ("int6", [FLOAT32_MAX], "31 times it must be finite"),
        ("int8", [-FLOAT32_MAX], "127 times it must be finite"),
        ("int2-bf16", [FLOAT32_MAX], "a bfloat16 scale is at most 3.3895"),
    ],
)
def test_a_scale_that_overflows_is_refused(scheme, w, message):
    with pytest.raises(rq.ScaleOverflowError, match=message):
        rq.quantize(np.array(w, np.float32), scheme)


def test_subnormal_weights_are_not_flushed():
    smallest = np.float32(2.0**-149)
    w = smallest * np.array([127, 50, -3, 1], np.float32)
    assert_same_bits(rq.quantize(w, "int8").dequantize(), w)


def test_a_scale_of_any_bytes_decodes_as_ieee_arithmetic_says():
    parts = {"codes": np.array([0, 1, 0xFF], np.uint8), "scales": np.array([np.inf], np.float32)}
    assert rq.dequantize(parts, "int8", (3,)).tolist()[1:] == [np.inf, -np.inf]
    assert np.isnan(rq.dequantize(parts, "int8", (3,))[0])


def test_asymmetric_codes_are_no_fixpoint_as_the_page_explains():
    w = np.array([-0.5, 254.5], np.float32)
    once = rq.quantize(w, "int8-asym")
    again = rq.quantize(once.dequantize(), "int8-asym")
    assert codes_of(once).tolist() == [0, 254]
    assert codes_of(again).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("int4-g128", 4.25), ("int4-g128-asym", 4.28125), ("int4-g128-asym-f16", 4.15625), ("int8", 8), ("int3-row", 3)],
)
def test_nominal_bits_per_weight_are_those_of_the_page(scheme, expected):
    assert rq.get_format(scheme).bits_per_weight == expected


def test_bits_per_weight_count_everything_stored():
    q = rq.quantize(np.ones((4, 256), np.float32), "int4-g128-asym")
    stored = 4 * 128 + 4 * 2 * 4 + 4 * 1  # codes, scales, and two 4-bit zero points a row
    assert q.nbytes == stored
    assert q.bits_per_weight == stored * 8 / 1024


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_error_bound_is_not_slack(bits, symmetric):
    """Half a step is reached: a bound twice as wide would hide a rounding that is off by one."""
    fmt = Integer(bits, symmetric=symmetric)
    k = np.arange(fmt.largest_code, dtype=np.float32)
    q = rq.quantize(np.append(k + np.float32(0.5), np.float32(fmt.largest_code)), fmt)
    worst = np.abs(np.append(k + 0.5, fmt.largest_code) - q.dequantize()).max()
    assert worst > 0.99 * error_bound(fmt, q).max()
