"""The public face: quantize, dequantize, error, and what they refuse."""

import math

import numpy as np
import pytest

import refquant as rq
from refquant.conformance.bits import assert_same_bits

W = np.arange(-12, 12, dtype=np.float32).reshape(2, 12)


def test_quantize_gives_parts_that_decode_to_the_shape_given():
    q = rq.quantize(W, "int4-g8-asym")
    assert list(q.parts) == ["codes", "scales", "zeros"]
    assert q.shape == (2, 12)
    assert q.nbytes == 2 * 6 + 2 * 2 * 4 + 2 * 1
    assert q.bits_per_weight == q.nbytes * 8 / 24
    assert q.dequantize().shape == (2, 12)


def test_options_as_keywords_or_in_the_scheme_give_the_same_parts():
    by_keyword = rq.quantize(W, "int4", group_size=8)
    by_scheme = rq.quantize(W, "int4-g8")
    assert by_keyword.format == by_scheme.format
    assert_same_bits(by_keyword.parts["codes"], by_scheme.parts["codes"])


def test_parts_made_by_somebody_else_decode():
    q = rq.quantize(W, "int3-g8")
    assert_same_bits(rq.dequantize(q.parts, "int3-g8", q.shape), q.dequantize())
    assert_same_bits(rq.dequantize(q.parts, "int3", q.shape, group_size=8), q.dequantize())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("scales"), r"parts \['codes'\] given; the format stores \['codes', 'scales'\]"),
        (lambda p: p.update(extra=p["codes"]), r"parts \['codes', 'extra', 'scales'\] given"),
        (lambda p: p.update(scales=p["scales"].astype(np.float64)), r"'scales' is float64 \(2, 2\).* float32 \(2, 2\)"),
        (lambda p: p.update(codes=p["codes"][:, :3]), r"'codes' is uint8 \(2, 3\); .* stores uint8 \(2, 6\)"),
        (lambda p: p.update(codes=p["codes"].view(np.int8)), "'codes' is int8"),
    ],
)
def test_parts_that_are_not_the_layout_are_refused(change, message):
    parts = dict(rq.quantize(W, "int4-g8").parts)
    change(parts)
    with pytest.raises(rq.PartsError, match=message):
        rq.dequantize(parts, "int4-g8", W.shape)


def test_one_array_for_a_format_of_several_parts_is_refused():
    with pytest.raises(rq.PartsError, match="pass them by name"):
        rq.dequantize(np.zeros(4, np.uint8), "int4", (8,))


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (np.arange(4), "dtype int64 given"),
        (["a"], "dtype <U1 given"),
        (np.zeros(4, complex), "dtype complex128 given"),
        (np.zeros(4, np.longdouble), "given; weights are float16, float32 or float64"),
        (np.float32(1), "a scalar given"),
        ([1e39], "w: 1e\\+39 at index \\(0,\\), 1 such of 1"),
    ],
)
def test_what_is_not_a_tensor_of_floats_is_refused(w, message):
    with pytest.raises(rq.RefquantError, match=message):
        rq.quantize(w, "int8")


def test_an_error_names_the_tensor():
    with pytest.raises(rq.ScaleOverflowError, match=r"^blk\.3\.up: the scale of group 0 is 87381\.33"):
        rq.quantize(np.full(4, 262144, np.float32), "int3-row-f16", name="blk.3.up")


@pytest.mark.parametrize("backend", ["numba", "cupy"])
def test_a_twin_that_is_not_there_is_refused_by_name(backend):
    with pytest.raises(rq.RefquantError, match=f"backend '{backend}' is a twin that this version does not have"):
        rq.quantize(W, "int8", backend=backend)
    with pytest.raises(rq.RefquantError, match="use 'auto' or 'numpy'"):
        rq.quantize(W, "int8").dequantize(backend)


def test_a_backend_that_nobody_has_is_refused():
    with pytest.raises(rq.RefquantError, match="'torch' is not a backend"):
        rq.quantize(W, "int8", backend="torch")


def test_error_is_that_of_its_definition():
    w, approximation = np.array([3.0, 4.0], np.float32), np.array([3.0, 3.0], np.float32)
    found = rq.error(w, approximation)
    assert found.mse == 0.5
    assert found.rmse == math.sqrt(0.5)
    assert found.max_abs == 1
    assert found.sqnr_db == pytest.approx(10 * math.log10(25))
    assert found.cosine == pytest.approx(21 / (5 * math.sqrt(18)))


def test_error_of_a_tensor_against_itself_is_none():
    found = rq.error(W, W)
    assert (found.mse, found.max_abs, found.sqnr_db) == (0, 0, math.inf)
    assert found.cosine == pytest.approx(1)


def test_error_of_zeros():
    zeros = np.zeros(3, np.float32)
    assert rq.error(zeros, zeros).cosine == 1
    assert rq.error(zeros, W[0, :3]).sqnr_db == -math.inf
    assert rq.error(W[0, :3], zeros).cosine == 0
    assert rq.error(W[0, :3], zeros).sqnr_db == 0


def test_error_sums_in_float64():
    w = np.full(1 << 20, 1e-25, np.float32)
    assert rq.error(w, np.zeros_like(w)).mse == pytest.approx(float(np.float32(1e-25)) ** 2, rel=1e-12)


def test_error_refuses_tensors_that_cannot_be_compared():
    with pytest.raises(rq.RefquantError, match=r"shapes \(2, 12\) and \(24,\) given"):
        rq.error(W, W.ravel())
    with pytest.raises(rq.RefquantError, match="empty"):
        rq.error(W[:0], W[:0])
    with pytest.raises(rq.NonFiniteError, match="nan at index"):
        rq.error(W, np.full_like(W, np.nan))
