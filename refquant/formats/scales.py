"""Scales as they are stored: float32, float16 or bfloat16, little-endian, bfloat16 as its 16-bit pattern."""

from typing import Literal, TypeAlias

import numpy as np

from refquant.arrays import Array, Float32
from refquant.errors import ScaleOverflowError
from refquant.floats import BF16, FP16

ScaleDtype: TypeAlias = Literal["float32", "float16", "bfloat16"]

SCALE_DTYPES: dict[str, np.dtype[np.generic]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}

_LARGEST = {"float32": float(np.finfo(np.float32).max), "float16": FP16.largest, "bfloat16": BF16.largest}


def store_scales(scales: Float32, dtype: ScaleDtype, largest_code: int) -> Array:
    """Narrow float32 scales to the stored dtype, once, ties to even.

    Raises:
        ScaleOverflowError: a scale beyond the dtype's largest, or one whose product with the largest code is not
            finite in float32, so that what is written always decodes to finite numbers.
    """
    with np.errstate(over="ignore", under="ignore"):  # what overflows is reported below, with its group
        stored: Array = BF16.encode(scales) if dtype == "bfloat16" else scales.astype(SCALE_DTYPES[dtype])
        finite = np.isfinite(load_scales(stored, dtype) * np.float32(largest_code))
    if not finite.all():
        group = int(np.argmin(finite))
        raise ScaleOverflowError(
            f"the scale of group {group} is {scales.flat[group]:.9g}: a {dtype} scale is at most {_LARGEST[dtype]:.9g} "
            f"and {largest_code} times it must be finite: choose a wider scale_dtype, or scale the weights down"
        )
    return stored


def load_scales(stored: Array, dtype: ScaleDtype) -> Float32:
    """Stored scales as float32, exactly."""
    return BF16.decode(stored) if dtype == "bfloat16" else stored.astype(np.float32)
