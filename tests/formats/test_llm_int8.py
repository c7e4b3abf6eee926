"""LLM.int8(): the special cases of spec/llm_int8.md, one by one. The general properties are in test_properties.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refquant as rq
from refquant.conformance.bits import assert_same_bits
from refquant.formats.llm_int8 import LlmInt8, dequantize_rows, int8_matmul, quantize_activations, quantize_rows

FLOAT32_MAX = np.finfo(np.float32).max
SQUARE = np.float32(6.200124e-05)


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_row_by_hand():
    q = rq.quantize(np.array([[2.0, -1.0, 0.0, 0.5], [0, 0, 0, 0]], np.float32), "llm-int8")
    assert q.parts["codes"].tolist() == [[127, -64, 0, 32], [0, 0, 0, 0]]  # 63.5 is a tie and goes to even
    assert q.parts["codes"].dtype == np.int8
    assert q.parts["absmax"].tolist() == [2.0, 0.0]
    steps = np.array([[127, -64, 0, 32], [0, 0, 0, 0]], np.float32)
    assert_same_bits(q.dequantize(), steps * np.array([[2], [0]], np.float32) * np.float32(1 / 127))


def test_127_over_absmax_is_the_reciprocal_times_127():
    w = np.append(np.full((20000, 1), 127, np.float32), np.arange(20000)[:, None] % 127 + np.float32(0.5), axis=1)
    w = w * np.linspace(1, 2, 20000, dtype=np.float32)[:, None]
    absmax = w[:, :1]
    by_reciprocal = np.rint(w * ((np.float32(1) / absmax) * np.float32(127)))
    assert (by_reciprocal != np.rint(w * (np.float32(127) / absmax))).any(), "the examples must tell the two apart"
    assert_same_bits(quantize_rows(w)[0], by_reciprocal.astype(np.int8))


def test_every_code_decodes_by_the_formula():
    codes = np.arange(-128, 128).astype(np.int8)[None]
    for absmax in np.array([1.0, 0.3, 1e-45, 2.6e36, 0.0, -1.0], np.float32):
        decoded = rq.dequantize({"codes": codes, "absmax": np.array([absmax])}, "llm-int8", (1, 256))
        assert_same_bits(decoded, codes.astype(np.float32) * absmax * np.float32(1 / 127))


def test_a_row_too_small_for_its_reciprocal_has_codes_zero():
    kept, lost = np.float32(3.75e-37), np.float32(3.7e-37)  # 127 over the second is beyond float32
    q = rq.quantize(np.array([[kept, -kept], [lost, -lost], [1e-45, 0]], np.float32), "llm-int8")
    assert q.parts["codes"].tolist() == [[127, -127], [0, 0], [0, 0]]
    assert_same_bits(q.parts["absmax"], np.array([kept, lost, 1e-45], np.float32))


def test_a_row_whose_codes_would_decode_past_float32_is_refused_by_its_number():
    w = np.ones((3, 4), np.float32)
    w[2, 1] = -3e36
    with pytest.raises(rq.ScaleOverflowError, match=r"blk: the absmax of row 2 is 3\.\d*e\+36: 127 times it"):
        rq.quantize(w, "llm-int8", name="blk")
    w[2, 1] = -2.6e36
    assert np.isfinite(rq.quantize(w, "llm-int8").dequantize()).all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (5,), (2, 0, 3), (2, 3, 5)])
def test_any_shape_has_one_absmax_a_row(shape):
    w = normals(*shape)
    q = rq.quantize(w, "llm-int8")
    assert q.parts["codes"].shape == shape
    assert q.parts["absmax"].shape == (int(np.prod(shape[:-1], dtype=int)),)
    np.testing.assert_allclose(q.dequantize(), w, atol=0.02)


@pytest.mark.parametrize("n", [1, 1023, 1024, 1025, 4095, 5001])
def test_integer_products_are_exact_at_the_largest_codes(n):
    rng = np.random.default_rng(n)
    a, b = (rng.choice(np.array([-128, -127, 127], np.int8), (rows, n)) for rows in (6, 4))
    product = int8_matmul(a, b)
    assert product.dtype == np.int32
    np.testing.assert_array_equal(product, a.astype(np.int64) @ b.astype(np.int64).T)
    for code in (-128, 127):  # 127² · 4095 is odd, and beyond what float32 holds
        extreme = np.full((1, n), code, np.int8)
        assert int8_matmul(extreme, extreme)[0, 0] == code * code * n


@given(st.binary(min_size=60, max_size=60))
def test_integer_products_of_any_codes_are_exact(raw):
    codes = np.frombuffer(raw, np.int8)
    a, b = codes[:36].reshape(3, 12), codes[36:].reshape(2, 12)
    np.testing.assert_array_equal(int8_matmul(a, b), a.astype(np.int64) @ b.astype(np.int64).T)


def test_the_output_is_the_integer_product_times_both_scales():
    x, w = normals(5, 70), normals(3, 70, seed=1)
    a, row = quantize_rows(x)
    b, column = quantize_rows(w)
    scales = row[:, None] * column[None]
    expected = (a.astype(np.int64) @ b.astype(np.int64).T).astype(np.float32) * scales * SQUARE
    assert_same_bits(rq.llm_int8_matmul(x, w), expected)


def test_a_magnitude_equal_to_the_threshold_is_an_outlier():
    x = np.array([[6.0, 1.0, 5.9999995, -2.0], [0.5, 0.25, 1.0, -6.0]], np.float32)
    codes, absmax, columns = quantize_activations(x, 6.0)
    assert columns.tolist() == [0, 3]
    assert absmax.tolist() == [np.float32(5.9999995), 1.0]
    assert codes.tolist() == [[0, 21, 127, 0], [0, 32, 127, 0]]


def test_what_is_no_outlier_in_an_outlier_column_still_counts_for_its_row():
    x = np.array([[8.0, 1.0], [4.0, 1.0]], np.float32)
    codes, absmax, columns = quantize_activations(x, 6.0)
    assert columns.tolist() == [0]
    assert absmax.tolist() == [1.0, 4.0]
    assert codes.tolist() == [[0, 127], [0, 32]]  # 31.75: the second row's scale is that of its 4


def test_outlier_columns_are_multiplied_in_float():
    x = np.zeros((2, 9), np.float32)
    x[:, 4] = [100.0, 0.001]  # int8 would lose the second
    w = normals(3, 9)
    q = rq.quantize(w, "llm-int8")
    expected = x[:, 4:5] * q.dequantize()[:, 4]
    np.testing.assert_allclose(rq.llm_int8_matmul(x, q), expected, rtol=1e-6)
    assert np.abs(rq.llm_int8_matmul(x, q, 0.0) - expected)[1].max() < 1e-3
    mixed = np.array([[100.0, 0.5], [0.001, 0.5]], np.float32)
    exact = mixed.astype(np.float64) @ w[:, :2].astype(np.float64).T
    with_outliers = np.abs(rq.llm_int8_matmul(mixed, w[:, :2]) - exact).max()
    without = np.abs(rq.llm_int8_matmul(mixed, w[:, :2], 0.0) - exact).max()
    assert with_outliers != without


def test_a_threshold_of_zero_means_no_outliers():
    x = normals(4, 16) * 100
    codes, absmax, columns = quantize_activations(x, 0.0)
    assert columns.size == 0
    assert_same_bits(codes, quantize_rows(x)[0])
    assert_same_bits(absmax, quantize_rows(x)[1])


def test_all_rows_of_a_call_decide_the_outlier_columns_together():
    x, w = normals(2, 3, 16).clip(-4, 4), normals(5, 16, seed=1)
    alone = rq.llm_int8_matmul(x[0], w)
    assert_same_bits(rq.llm_int8_matmul(x, w)[0], alone)
    x[1, 2, 7] = 9.0
    assert not np.array_equal(rq.llm_int8_matmul(x, w)[0], alone)


def test_the_input_is_left_alone():
    x = normals(4, 16) * 5
    before = x.copy()
    rq.llm_int8_matmul(x, normals(3, 16))
    assert_same_bits(x, before)


def test_a_linear_layer_of_the_format_runs_the_scheme_with_its_own_threshold():
    x, w = normals(2, 4, 32), normals(6, 32, seed=1)
    for scheme, threshold in (("llm-int8", 6.0), ("llm-int8-t1.5", 1.5), ("llm-int8-t0", 0.0)):
        q = rq.quantize(w, scheme)
        assert_same_bits(q.linear(x[0]), rq.llm_int8_matmul(x[0], w, threshold))
    assert not np.array_equal(rq.quantize(w, "llm-int8-t1.5").linear(x), rq.quantize(w, "llm-int8").linear(x))


def test_a_linear_layer_takes_each_sequence_on_its_own():
    x, q = normals(3, 2, 4, 32), rq.quantize(normals(6, 32, seed=1), "llm-int8")
    x[0, 0, 0, 5] = 60  # an outlier column for this sequence, and for no other
    y = q.linear(x)
    for sequence in np.ndindex(3, 2):
        assert_same_bits(y[sequence], rq.llm_int8_matmul(x[sequence], q))
    assert not np.array_equal(y, rq.llm_int8_matmul(x, q))
    assert q.linear(x[:0]).shape == (0, 2, 4, 6)


def test_the_product_is_near_the_exact_one():
    x, w = normals(20, 300), normals(30, 300, seed=1)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    assert np.abs(rq.llm_int8_matmul(x, w) - exact).max() < 0.05 * np.abs(exact).max()


def test_rows_of_zeros_and_empty_operands_give_zeros():
    w = normals(3, 8)
    assert_same_bits(rq.llm_int8_matmul(np.zeros((2, 8), np.float32), w), np.zeros((2, 3), np.float32))
    assert rq.llm_int8_matmul(np.zeros((0, 8), np.float32), w).shape == (0, 3)
    assert rq.llm_int8_matmul(np.zeros((2, 8), np.float32), np.zeros((0, 8), np.float32)).shape == (2, 0)
    assert_same_bits(rq.llm_int8_matmul(np.zeros((2, 0)), np.zeros((3, 0))), np.zeros((2, 3), np.float32))


def test_scales_whose_product_overflows_give_what_ieee_gives():
    x, w = np.full((1, 2), 1e20, np.float32), np.full((1, 2), 1e20, np.float32)
    assert rq.llm_int8_matmul(x, w, 0.0)[0, 0] == np.inf


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (np.zeros((2, 3)), np.zeros((4, 5)), r"x \(2, 3\) and w \(4, 5\) given"),
        (np.zeros((2, 3)), np.zeros(3), r"w \(3,\) given; w is \(rows, n\)"),
        (np.zeros((1, 131072)), np.zeros((1, 131072)), "131072 columns given; int32 sums hold at most 131071"),
        (np.zeros((2, 3)), rq.quantize(np.ones((4, 3), np.float32), "int8"), "w is in int8; give floats"),
        (np.zeros((2, 3), np.int32), np.zeros((4, 3)), "x: dtype int32 given"),
        (np.array([[np.nan, 0]]), np.zeros((4, 2)), r"x: nan at index \(0, 0\)"),
        (np.zeros((2, 2)), np.array([[0, np.inf]]), r"w: inf at index \(0, 1\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x, w, message):
    with pytest.raises(rq.RefquantError, match=message):
        rq.llm_int8_matmul(x, w)


@pytest.mark.parametrize("threshold", [-1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_no_magnitude_is_refused(threshold):
    with pytest.raises(rq.RefquantError, match=r"threshold = .* given; a magnitude"):
        rq.llm_int8_matmul(np.zeros((1, 2)), np.zeros((1, 2)), threshold)
    with pytest.raises(rq.RefquantError, match=r"threshold = .* given; a magnitude"):
        LlmInt8(threshold)


@pytest.mark.parametrize(
    ("scheme", "threshold"),
    [("llm-int8", 6.0), ("llm-int8-t0", 0.0), ("llm-int8-t5.25", 5.25), ("llm-int8-t100", 100.0)],
)
def test_schemes_print_back(scheme, threshold):
    fmt = rq.get_format(scheme)
    assert fmt == LlmInt8(threshold)
    assert str(fmt) == scheme
    assert fmt.bits_per_weight == 8
    assert rq.get_format("llm-int8-t6") == rq.get_format("llm-int8")


@pytest.mark.parametrize("threshold", [1e-7, 1.23456789, 1e6])
def test_a_threshold_that_a_scheme_could_not_write_is_refused(threshold):
    with pytest.raises(rq.RefquantError, match="up to six digits"):
        LlmInt8(threshold)


def test_decoding_some_columns_gives_their_part_of_the_whole():
    q = rq.quantize(normals(6, 20), "llm-int8")
    columns = np.array([1, 7, 19])
    part = dequantize_rows(q.parts["codes"][:, columns], q.parts["absmax"])
    assert_same_bits(part, np.ascontiguousarray(q.dequantize()[:, columns]))
