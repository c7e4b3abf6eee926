"""The element types of safetensors files, by the names that the files use (spec/safetensors.md)."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from refquant.floats import BF16, E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, E8M0, FP16, FloatFormat


@dataclass(frozen=True)
class Dtype:
    """An element type.

    Attributes:
        name: as the file writes it.
        stored: what `.numpy()` views the bytes as; for a float that NumPy lacks, its codes.
        float_format: what the codes of a float of at most 16 bits mean.
    """

    name: str
    stored: np.dtype[np.generic]
    float_format: FloatFormat | None = None


def _dtype(name: str, stored: str, float_format: FloatFormat | None = None) -> Dtype:
    return Dtype(name, np.dtype(stored), float_format)


DTYPES: Final[dict[str, Dtype]] = {
    dtype.name: dtype
    for dtype in (
        _dtype("F64", "<f8"),
        _dtype("F32", "<f4"),
        _dtype("F16", "<f2", FP16),
        _dtype("BF16", "<u2", BF16),
        _dtype("F8_E4M3", "u1", E4M3),
        _dtype("F8_E5M2", "u1", E5M2),
        _dtype("F8_E4M3FNUZ", "u1", E4M3FNUZ),
        _dtype("F8_E5M2FNUZ", "u1", E5M2FNUZ),
        _dtype("F8_E8M0", "u1", E8M0),
        _dtype("I64", "<i8"),
        _dtype("I32", "<i4"),
        _dtype("I16", "<i2"),
        _dtype("I8", "i1"),
        _dtype("U64", "<u8"),
        _dtype("U32", "<u4"),
        _dtype("U16", "<u2"),
        _dtype("U8", "u1"),
        _dtype("BOOL", "?"),
    )
}
