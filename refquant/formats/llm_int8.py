"""LLM.int8(): int8 rows on both sides of a product, and the outlier columns of x in float (spec/llm_int8.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array, Float32, Int8, Int32, Int64, Shape, as_weights
from refquant.errors import RefquantError, ScaleOverflowError
from refquant.formats.base import Format, Option, Parts, QuantizedTensor, Stored
from refquant.formats.base import encode as quantize_with
from refquant.formats.registry import register

DEFAULT_THRESHOLD = 6.0

_RECIPROCAL_OF_127 = np.float32(7.874015718698502e-3)
# bitsandbytes' CPU library writes 1/127² so, 1.8e-5 of itself too large; its CUDA kernel has 6.200012e-05.
_RECIPROCAL_OF_127_SQUARED = np.float32(6.200124e-05)

# A product of two codes is at most 2^14, so 1,024 of them add up to at most 2^24: in any order of summation, every
# partial sum is an integer that float32 holds exactly. BLAS then multiplies integers at the speed of float32.
_EXACT_COLUMNS = 1024
_MOST_COLUMNS = (1 << 31 - 14) - 1


@dataclass(frozen=True)
class LlmInt8(Format):
    """int8 weights with a float32 absmax a row; a linear layer quantizes its input's rows too.

    Attributes:
        threshold: columns of the input with a magnitude of at least this are multiplied in float32; 0 for none.
    """

    threshold: float = DEFAULT_THRESHOLD

    options = (Option("threshold", "t0", 0.0), Option("threshold", "t#", implied=DEFAULT_THRESHOLD))

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        printed = f"{self.threshold:g}"
        if "e" in printed or float(printed) != self.threshold:
            raise RefquantError(
                f"llm-int8: threshold = {self.threshold!r} given; a scheme writes it with up to six digits, "
                "0.0001 to 999999"
            )

    @property
    def name(self) -> str:
        return "llm-int8"

    @property
    def block_size(self) -> None:
        return None

    @property
    def bits_per_weight(self) -> float:
        return 8.0

    def layout(self, shape: Shape) -> dict[str, Stored]:
        rows = math.prod(shape[:-1])
        return {"codes": Stored(np.dtype(np.int8), shape), "absmax": Stored(np.dtype("<f4"), (rows,))}

    def encode(self, w: Float32) -> Parts:
        codes, absmax = quantize_rows(w.reshape(math.prod(w.shape[:-1]), w.shape[-1]))
        with np.errstate(over="ignore"):  # reported below, with its row
            finite = np.isfinite(absmax * np.float32(127))
        if not finite.all():
            row = int(np.argmin(finite))
            raise ScaleOverflowError(
                f"the absmax of row {row} is {absmax[row]:.9g}: 127 times it must be finite in float32, "
                f"so at most {np.finfo(np.float32).max / 127:.9g}: scale the weights down"
            )
        return {"codes": codes.reshape(w.shape), "absmax": absmax}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        codes = parts["codes"].reshape(len(parts["absmax"]), shape[-1])
        return dequantize_rows(codes, parts["absmax"]).reshape(shape)

    def linear(self, x: Float32, q: QuantizedTensor) -> Float32:
        # Each sequence has its own outlier columns, so that no window depends on those it is batched with.
        y = np.empty((*x.shape[:-1], q.shape[0]), np.float32)
        for sequence in np.ndindex(x.shape[:-2]):
            y[sequence] = llm_int8_matmul(x[sequence], q, self.threshold)
        return y


def llm_int8_matmul(
    x: npt.ArrayLike, w: npt.ArrayLike | QuantizedTensor, threshold: float = DEFAULT_THRESHOLD
) -> Float32:
    """`x @ w.T` by LLM.int8(): int8 rows, exact int32 accumulation, outlier columns of x in float32.

    Args:
        x: finite floats of shape (..., n). All its rows together decide which columns are outliers.
        w: finite floats of shape (rows, n), quantized here, or a QuantizedTensor in `llm-int8` of that shape.
        threshold: a column of x with a magnitude of at least this anywhere is an outlier; 0 for no outliers. It is
            this number that counts, whatever threshold w's own format has.

    Returns:
        float32 (..., rows). A row of zeros, or one whose absmax is below 3.74e-37, adds nothing but its outliers. An
        overflow of the scales' product gives what IEEE arithmetic gives.

    Raises:
        RefquantError: the shapes do not match, n is beyond 131,071 (int32 would overflow), w is in another format, or
            the threshold is negative or not finite.
        NonFiniteError: NaN or infinity in x or w.

    Source: Dettmers et al., LLM.int8(), arXiv:2208.07339; bitsandbytes 0.50, backends/default/ops.py; spec/llm_int8.md.
    """
    check_threshold(threshold)
    activations = as_weights(x, "x")
    q = w if isinstance(w, QuantizedTensor) else quantize_with(w, LlmInt8(), "w")
    _check_operands(activations.shape, q)
    rows = activations.reshape(math.prod(activations.shape[:-1]), q.shape[1])  # (rows of x, n)
    codes, absmax, outliers = quantize_activations(rows, threshold)
    with np.errstate(over="ignore", invalid="ignore"):
        scales = absmax[:, None] * q.parts["absmax"][None, :]
        y = int8_matmul(codes, q.parts["codes"]).astype(np.float32) * scales * _RECIPROCAL_OF_127_SQUARED  # M5, M6
        if outliers.size:
            y += rows[:, outliers] @ dequantize_rows(q.parts["codes"][:, outliers], q.parts["absmax"]).T  # M7
    return y.reshape(*activations.shape[:-1], q.shape[0])


def quantize_activations(x: Float32, threshold: float) -> tuple[Int8, Float32, Int64]:
    """Codes (rows, n), absmax (rows,) and the outlier columns, ascending, of finite numbers (rows, n)."""
    if threshold == 0:
        return *quantize_rows(x), np.zeros(0, np.int64)
    large = np.abs(x) >= np.float32(threshold)  # M1
    columns = np.flatnonzero(large.any(axis=0))
    codes, absmax = quantize_rows(np.where(large, np.float32(0), x) if columns.size else x)  # M2, M3
    codes[:, columns] = 0  # M4
    return codes, absmax, columns


def quantize_rows(w: Float32) -> tuple[Int8, Float32]:
    """Codes (rows, n) and absmax (rows,) of finite numbers (rows, n). The page numbers the steps."""
    absmax = np.abs(w).max(axis=1, initial=0)  # V1
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a reciprocal may be infinite, and 0·∞ is NaN
        inverse = np.reciprocal(absmax) * np.float32(127)  # V2: two roundings, as torch evaluates 127 / absmax
        steps = np.rint(w * inverse[:, None])  # V3, V4
    return np.where(np.abs(steps) <= 127, steps, np.float32(0)).astype(np.int8), absmax  # V5


def dequantize_rows(codes: Int8, absmax: Float32) -> Float32:
    """float32 (rows, n): (code · absmax) · (1/127), rounded after each product."""
    return codes.astype(np.float32) * absmax[:, None] * _RECIPROCAL_OF_127


def int8_matmul(a: Int8, b: Int8) -> Int32:
    """`a @ b.T`, exactly: int8 (rows, n) and (columns, n) to int32 (rows, columns), n at most 131,071."""
    total = np.zeros((len(a), len(b)), np.int32)
    for start in range(0, a.shape[1], _EXACT_COLUMNS):
        part = slice(start, start + _EXACT_COLUMNS)
        total += (a[:, part].astype(np.float32) @ b[:, part].astype(np.float32).T).astype(np.int32)
    return total


def check_threshold(threshold: float) -> None:
    """Raise unless the threshold is a finite number that is not negative."""
    if not (math.isfinite(threshold) and threshold >= 0):
        raise RefquantError(f"llm-int8: threshold = {threshold!r} given; a magnitude, or 0 for no outliers")


def _check_operands(x: Shape, q: QuantizedTensor) -> None:
    if not isinstance(q.format, LlmInt8):
        raise RefquantError(f"llm_int8_matmul: w is in {q.format}; give floats, or a tensor quantized to 'llm-int8'")
    if len(q.shape) != 2 or x[-1] != q.shape[1]:
        raise RefquantError(f"llm_int8_matmul: x {x} and w {q.shape} given; w is (rows, n) and x is (..., n)")
    if q.shape[1] > _MOST_COLUMNS:
        raise RefquantError(f"llm_int8_matmul: {q.shape[1]} columns given; int32 sums hold at most {_MOST_COLUMNS}")


register(LlmInt8())
