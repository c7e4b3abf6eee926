"""Scales as they are stored: float32, float16 or bfloat16, little-endian, bfloat16 as its 16-bit pattern."""

import numpy as np

from refquant.arrays import Array, Float32
from refquant.errors import ScaleOverflowError
from refquant.floats import BF16

SCALE_DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}


def store_scales(scales: Float32, scale_dtype: str) -> Array:
    """Narrow float32 scales to the stored dtype, once, ties to even.

    Raises:
        ScaleOverflowError: a scale that is infinite, or becomes so; names the first group and the limit.
    """
    if scale_dtype == "bfloat16":
        stored: Array = BF16.encode(scales)
    else:
        with np.errstate(over="ignore", under="ignore"):  # what overflows is reported below, with its group
            stored = scales.astype(SCALE_DTYPES[scale_dtype])
    finite = np.isfinite(load_scales(stored, scale_dtype))
    if not finite.all():
        group = int(np.argmin(finite.ravel()))
        limit = {"float32": "3.4028235e+38", "float16": "65504", "bfloat16": "3.3895314e+38"}[scale_dtype]
        raise ScaleOverflowError(
            f"the scale of group {group} is {scales.ravel()[group]:.9g}, and {scale_dtype} holds at most {limit}: "
            f"store scales in a wider dtype, or scale the weights down"
        )
    return stored


def load_scales(stored: Array, scale_dtype: str) -> Float32:
    """Stored scales as float32, exactly."""
    if scale_dtype == "bfloat16":
        return BF16.decode(stored)
    return stored.astype(np.float32)
