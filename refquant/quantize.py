"""The public face of quantization: `quantize`, `dequantize` and `error`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32, Shape, as_weights
from refquant.errors import PartsError, RefquantError
from refquant.formats.base import Format, QuantizedTensor, encode
from refquant.formats.registry import get_format


def quantize(
    w: npt.ArrayLike,
    scheme: str | Format,
    *,
    backend: str = "auto",
    name: str = "w",
    imatrix: npt.ArrayLike | None = None,
    **options: object,
) -> QuantizedTensor:
    """Quantize a tensor.

    Args:
        w: finite floats of shape (..., n); float64 is rounded to float32 once. −0, subnormals, all-zero and empty
            tensors are fine: each format's page in spec/ says what becomes of them.
        scheme: `"int4-g128-asym"`, `"nf4-b64-dq"`, … or a Format.
        backend: "auto" (the fastest installed) or "numpy" (the reference). All give the same bits.
        name: what error messages call the tensor.
        imatrix: ggml's importance, floats ≥ 0 of shape (n,), one a column, or (..., n) with a row for every matrix
            of w. ggml's types take one: some demand it, and some (q8_0, f16, …) give the same bytes with any.
        **options: the format's options as keywords (`group_size=128`), over those in the scheme.

    Returns:
        The stored parts, with their format and the tensor's shape.

    Raises:
        UnknownNameError: no such format or option.
        NonFiniteError: NaN or infinity in w; the message names the first index.
        ScaleOverflowError: a scale that does not fit the dtype it is stored in.
        RefquantError: w is not a float array, or has no axis; rows that the block size does not divide; an importance
            matrix missing, of another shape, negative or not finite, or given to a format that takes none.

    Source: design of refquant; the page in spec/ of the format's family.
    """
    return encode(w, get_format(scheme, **options), name, backend, imatrix)


def dequantize(
    parts: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
    scheme: str | Format,
    shape: Shape,
    *,
    backend: str = "auto",
    **options: object,
) -> Float32:
    """Decode parts that somebody else made.

    Args:
        parts: the stored arrays by name; for a format of one part, the array itself will do.
        scheme: the format they are in.
        shape: the shape of the tensor.
        backend: as for `quantize`.
        **options: the format's options as keywords.

    Returns:
        float32 of the given shape. A stored scale that is NaN or infinite gives what IEEE arithmetic gives.

    Raises:
        PartsError: a part is missing, unknown, or of the wrong dtype or shape.
    """
    fmt = get_format(scheme, **options)
    if isinstance(parts, Mapping):
        arrays = {name: np.asarray(part) for name, part in parts.items()}
    elif len(fmt.parts) == 1:
        arrays = {fmt.parts[0]: np.asarray(parts)}
    else:
        raise PartsError(f"{fmt}: one array given; the format stores {list(fmt.parts)}: pass them by name")
    return QuantizedTensor(fmt, tuple(shape), arrays).dequantize(backend)


@dataclass(frozen=True)
class Error:
    """How far a tensor is from the one it stands for; all sums in float64.

    Attributes:
        mse: mean squared error.
        rmse: its square root.
        max_abs: largest absolute difference.
        sqnr_db: signal to quantization noise, 10·log10(Σw² / Σ(w − ŵ)²); inf where nothing differs.
        cosine: cosine of the angle between the two; 1 where both are zero.
    """

    mse: float
    rmse: float
    max_abs: float
    sqnr_db: float
    cosine: float


def error(w: npt.ArrayLike, q: QuantizedTensor | npt.ArrayLike) -> Error:
    """Compare weights with their quantized form, or with any array of the same shape.

    Raises:
        RefquantError: the shapes differ, or the tensors are empty.
        NonFiniteError: a NaN or an infinity in either.
    """
    a = as_weights(w, "w").astype(np.float64).ravel()
    decoded = q.dequantize() if isinstance(q, QuantizedTensor) else q
    b = as_weights(decoded, "q").astype(np.float64).ravel()
    if np.shape(w) != np.shape(decoded):
        raise RefquantError(f"error: shapes {np.shape(w)} and {np.shape(decoded)} given; they must be equal")
    if a.size == 0:
        raise RefquantError("error: empty tensors given; there is no error to measure")
    difference = a - b
    noise, signal = float(difference @ difference), float(a @ a)
    norms = math.sqrt(signal) * math.sqrt(float(b @ b))
    return Error(
        mse=noise / a.size,
        rmse=math.sqrt(noise / a.size),
        max_abs=float(np.abs(difference).max()),
        sqnr_db=sqnr_db(signal, noise),
        cosine=float(a @ b) / norms if norms else float(signal == 0 and noise == 0),
    )


def sqnr_db(signal: float, noise: float) -> float:
    """10·log10(signal / noise) of two sums of squares: inf without noise, −inf without signal."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
