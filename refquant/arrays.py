"""The array types that signatures name, and how a caller's array becomes one."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from refquant.errors import NonFiniteError, RefquantError

Array: TypeAlias = npt.NDArray[Any]
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int8: TypeAlias = npt.NDArray[np.int8]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
UInt8: TypeAlias = npt.NDArray[np.uint8]
Shape: TypeAlias = tuple[int, ...]


def as_weights(w: npt.ArrayLike, name: str = "w") -> Float32:
    """The caller's array as native, C-contiguous float32.

    Args:
        w: floats of shape (..., n), any byte order and strides. float16 widens exactly; float64 is rounded to
            float32 once (ties to even).
        name: what error messages call the array.

    Raises:
        RefquantError: not a float array, or no axis at all.
        NonFiniteError: a NaN, an infinity, or a float64 beyond float32's range; names the first index.
    """
    array = np.asarray(w)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise RefquantError(
            f"{name}: dtype {array.dtype} given; weights are float16, float32 or float64: convert first"
        )
    if array.ndim == 0:
        raise RefquantError(f"{name}: a scalar given; weights need at least one axis: use reshape(1)")
    with np.errstate(over="ignore"):  # an overflow becomes an infinity, which check_finite reports with its index
        array32 = np.ascontiguousarray(array, dtype=np.float32)
    check_finite(array32, name, given=array)
    return array32


def check_finite(array: Array, name: str, given: Array | None = None) -> None:
    """Raise NonFiniteError with the first index at which `array` is NaN or infinite, and the value `given` there."""
    finite = np.isfinite(array)
    if finite.all():
        return
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
    value = (array if given is None else given)[index]
    raise NonFiniteError(
        f"{name}: {value} at index {index}, {array.size - np.count_nonzero(finite)} such of {array.size}; "
        f"every value must be finite in float32 (at most {np.finfo(np.float32).max:.9g}): clean the tensor first"
    )


def as_importance(imatrix: npt.ArrayLike, shape: Shape) -> Float32:
    """The caller's importance matrix for a tensor of this shape, as native, C-contiguous float32.

    Args:
        imatrix: floats ≥ 0 of shape (n,), or (..., n) with an own row for every matrix of the tensor.
        shape: the tensor's, (..., n).

    Raises:
        RefquantError: another shape, or a value that is negative or not finite; names the first index.
    """
    given = np.asarray(imatrix)
    allowed = list(dict.fromkeys([shape[-1:], (*shape[:-2], *shape[-1:])]))
    if given.dtype.kind != "f" or given.shape not in allowed:
        raise RefquantError(
            f"imatrix of dtype {given.dtype} and shape {given.shape} given; floats of shape "
            f"{' or '.join(map(str, allowed))} weigh the columns of a tensor of shape {shape}"
        )
    with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is reported below
        importance = np.ascontiguousarray(given, np.float32)
    bad = ~(np.isfinite(importance) & (importance >= 0))
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
        raise RefquantError(
            f"imatrix: {given[index]} at index {index}, {np.count_nonzero(bad)} such of {given.size}; "
            "an importance is finite and not negative"
        )
    return importance
