"""refquant's LLM.int8() and bitsandbytes 0.50 on the CPU: codes, maxima and int32 sums are the same bits.

So is the output where there are no outliers. Outlier columns are a float32 matrix product of BLAS on both sides, each
in its own order, and are held to a tolerance.
"""

import bitsandbytes
import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.arrays import Array, Float32
from refquant.conformance import strategies
from refquant.conformance.bits import assert_same_bits
from refquant.formats.llm_int8 import LlmInt8, dequantize_rows, int8_matmul, quantize_activations, quantize_rows

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]

many = settings(max_examples=300, deadline=None)


@st.composite
def matrices(draw: st.DrawFn, low: int = -126, high: int = 127) -> Float32:
    row = strategies.block(draw(st.integers(1, 40)), strategies.Aim(low, high))
    return np.stack([draw(row) for _ in range(draw(st.integers(1, 5)))])


def tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(array.copy())


@many
@given(matrices())
def test_codes_and_maxima_of_weights_are_theirs(w: Float32) -> None:
    codes, absmax = quantize_rows(w)
    their_codes, their_absmax, _ = bnb.int8_vectorwise_quant(tensor(w))
    assert_same_bits(codes, their_codes.numpy())
    assert_same_bits(absmax, their_absmax.numpy())


@many
@given(matrices())
def test_weights_decode_to_their_bits(w: Float32) -> None:
    codes, absmax = quantize_rows(w)
    expected = bnb.int8_vectorwise_dequant(tensor(codes), tensor(absmax)).numpy()
    with np.errstate(over="ignore"):
        assert_same_bits(dequantize_rows(codes, absmax), expected)


def test_all_codes_decode_to_their_bits() -> None:
    codes = np.tile(np.arange(-128, 128).astype(np.int8), (6, 1))
    absmax = np.array([1.0, 3.0, 1e-45, 1e-38, 2.6e36, 0.1], np.float32)
    expected = bnb.int8_vectorwise_dequant(tensor(codes), tensor(absmax)).numpy()
    assert_same_bits(rq.dequantize({"codes": codes, "absmax": absmax}, "llm-int8", (6, 256)), expected)


@many
@given(matrices(-4, 6), st.sampled_from([0.0, 0.5, 1.0, 6.0]))
def test_codes_maxima_and_outlier_columns_of_activations_are_theirs(x: Float32, threshold: float) -> None:
    codes, absmax, columns = quantize_activations(x, threshold)
    their_codes, their_absmax, their_columns = bnb.int8_vectorwise_quant(tensor(x), threshold=threshold)
    assert_same_bits(codes, their_codes.numpy())
    assert_same_bits(absmax, their_absmax.numpy())
    assert columns.tolist() == ([] if their_columns is None else their_columns.tolist())


@pytest.mark.parametrize("n", [1, 7, 1024, 1040])
def test_int32_sums_are_theirs_while_float32_holds_them(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = (rng.choice(np.array([-127, -126, 126, 127], np.int8), (rows, n)) for rows in (9, 5))
    assert_same_bits(int8_matmul(a, b), bnb.int8_linear_matmul(tensor(a), tensor(b)).numpy())


def test_their_float32_sums_are_wrong_beyond_2_to_the_24_and_ours_are_not() -> None:
    n = 4097
    a = np.full((1, n), 127, np.int8)
    b = np.full((1, n), 127, np.int8)
    b[0, -1] = 126
    exact = 127 * 127 * (n - 1) + 127 * 126
    assert int8_matmul(a, b)[0, 0] == exact
    assert torch.matmul(tensor(a).float(), tensor(b).float().t()).to(torch.int32).item() != exact


@many
@given(matrices(-8, 2), st.integers(0, 2**32 - 1))
def test_the_output_without_outliers_is_theirs(x: Float32, seed: int) -> None:
    w = np.random.default_rng(seed).normal(size=(6, x.shape[1])).astype(np.float32)
    q = rq.quantize(w, "llm-int8")
    codes, absmax, _ = quantize_activations(x, 0.0)
    sums = bnb.int8_linear_matmul(tensor(codes), tensor(q.parts["codes"]))
    dequantize = torch.ops.bitsandbytes.int8_mm_dequant.default
    expected = dequantize(sums, tensor(absmax), tensor(q.parts["absmax"]), dtype=torch.float32).numpy()
    assert_same_bits(rq.llm_int8_matmul(x, q, 0.0), expected)


def their_linear(x: Float32, w: Float32, threshold: float) -> Float32:
    state = bitsandbytes.MatmulLtState()
    state.is_training = False
    state.has_fp16_weights = False
    with torch.no_grad():
        return bitsandbytes.matmul(tensor(x), tensor(w), state=state, threshold=threshold).numpy()


@pytest.mark.parametrize("outliers", [0, 1, 5])
@pytest.mark.parametrize("n", [64, 777])
def test_their_linear_layer_gives_our_output_for_halves(n: int, outliers: int) -> None:
    rng = np.random.default_rng(n + outliers)
    # Their layer casts both sides to float16 before it quantizes them; numbers that float16 holds pass unchanged.
    x, w = (rng.normal(size=(rows, n)).clip(-5, 5).astype(np.float16).astype(np.float32) for rows in (33, 21))
    x[rng.integers(0, 33, outliers), rng.choice(n, outliers, replace=False)] = 6.0 + np.arange(outliers)
    ours, expected = rq.llm_int8_matmul(x, w), their_linear(x, w, 6.0)
    if outliers:
        np.testing.assert_allclose(ours, expected, rtol=0, atol=4 * np.finfo(np.float32).eps * np.abs(expected).max())
    else:
        assert_same_bits(ours, expected)


def test_a_batch_decides_its_outlier_columns_together_as_theirs_does() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).clip(-3, 3).astype(np.float16).astype(np.float32) for shape in ((2, 5, 32), (7, 32)))
    x[1, 4, 3] = 8.0
    q = rq.quantize(w, LlmInt8())
    ours = rq.llm_int8_matmul(x, q)
    np.testing.assert_allclose(ours, their_linear(x, w, 6.0), rtol=0, atol=1e-5)
    assert not np.array_equal(ours[0], rq.llm_int8_matmul(x[0], q))
