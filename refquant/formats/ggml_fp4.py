"""ggml's 4-bit floats mxfp4 and nvfp4: E2M1 codes with an 8-bit float as scale (spec/ggml_fp4.md)."""

import math

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.registry import register

MXFP4_STRUCT = np.dtype([("e", "u1"), ("qs", "u1", 16)])
NVFP4_STRUCT = np.dtype([("d", "u1", 4), ("qs", "u1", 32)])

# Twice the E2M1 numbers, so that they are whole; the scales below are halved.
_MAGNITUDES = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float32)
_VALUES = np.concatenate([_MAGNITUDES, np.float32(0) - _MAGNITUDES])  # code 8 is +0


def _nearest(w: Float32, d: Float32) -> UInt8:
    """The codes whose value · d is nearest in float32; of equally near ones the lowest.

    Numbers of the other sign are never nearer than zero, so magnitudes are compared.
    """
    magnitude = np.abs(w)
    error, code = magnitude.copy(), np.zeros(w.shape, np.uint8)
    for i, value in enumerate(_MAGNITUDES[1:], 1):
        new = np.abs(value * d - magnitude)
        np.copyto(code, np.uint8(i), where=new < error)
        np.minimum(error, new, out=error)
    code[(w < 0) & (code > 0)] += 8
    return code


def _pack(codes: UInt8) -> UInt8:
    """Codes j and j + half of each run share byte j, the first in the low nibble: (runs, size) to (runs, size / 2)."""
    half = codes.shape[1] // 2
    packed: UInt8 = codes[:, :half] | codes[:, half:] << np.uint8(4)
    return packed


def _values(packed: UInt8) -> Float32:
    values: Float32 = _VALUES[np.concatenate([packed & 15, packed >> 4], axis=1)]
    return values


def _rounded_up() -> npt.NDArray[np.uint32]:
    """How many float32 below 2^k have a logarithm that float32 rounds to k, by the exponent field k + 126 they have.

    The n-th of them has log2 k − n · 2^−24 / ln 2, which must be less than half a gap of float32 below k.
    """
    k = np.arange(256) - 126
    gap = k - np.nextafter(k.astype(np.float32), np.float32(-np.inf)).astype(np.float64)
    count: npt.NDArray[np.uint32] = np.floor(gap * 2**23 * math.log(2)).astype(np.uint32)
    return count


_HALF_E8M0 = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)  # 255 is no NaN
_ROUNDED_UP = _rounded_up()


def _encode_mxfp4(w: Float32) -> Blocks:
    blocks = np.empty(len(w), MXFP4_STRUCT)
    bits = np.abs(w).max(axis=1).view(np.uint32)
    logarithm = bits + _ROUNDED_UP[bits >> np.uint32(23)] >> np.uint32(23)  # floor of float32's log2, plus 127
    blocks["e"] = np.maximum(logarithm, 2) - np.uint32(2)
    blocks["qs"] = _pack(_nearest(w, _HALF_E8M0[blocks["e"]][:, None]))
    return blocks


def _decode_mxfp4(blocks: Blocks) -> Float32:
    w = _values(blocks["qs"])
    w *= _HALF_E8M0[blocks["e"]][:, None]
    return w


def _half_ue4m3() -> Float32:
    """Half the number that each byte means as a scale of nvfp4: e4m3's, the sign bit ignored, but 0 for 0x7f."""
    exponent, fraction = np.divmod(np.arange(256) & 0x7F, 8)
    numbers = np.where(exponent == 0, fraction * 2.0**-9, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    numbers[0x7F] = 0
    return (numbers / 2).astype(np.float32)


_HALF_UE4M3 = _half_ue4m3()


def _ue4m3(x: Float32) -> UInt8:
    """The byte of a scale x ≥ 0: halves round up, and all from 240 upwards is 448."""
    x = np.minimum(x, np.float32(448))
    tiny = np.minimum((x * np.float32(512) + np.float32(0.5)).astype(np.uint32), 7)
    bits = x.view(np.uint32)
    half_up = (bits >> np.uint32(19) & np.uint32(1)) + (bits >> np.uint32(20))  # exponent and three bits of fraction
    code = np.where(bits < 121 << 23, tiny, half_up - (120 << 3))  # below 2^-6 are the subnormals
    return np.where(code >= 0x78, 0x7E, code).astype(np.uint8)


def _encode_nvfp4(w: Float32) -> Blocks:
    blocks = np.empty(len(w), NVFP4_STRUCT)
    sixteens = w.reshape(-1, 16)  # (4 · blocks, 16)
    d = _ue4m3(np.abs(sixteens).max(axis=1) / np.float32(6))
    blocks["d"] = d.reshape(-1, 4)
    blocks["qs"] = _pack(_nearest(sixteens, _HALF_UE4M3[d][:, None])).reshape(-1, 32)
    return blocks


def _decode_nvfp4(blocks: Blocks) -> Float32:
    w = _values(blocks["qs"].reshape(-1, 8))  # (4 · blocks, 16)
    w *= _HALF_UE4M3[blocks["d"].reshape(-1)][:, None]
    return w.reshape(-1, 64)


MXFP4 = GgmlType(
    name="mxfp4",
    type_id=39,
    block_size=32,
    struct=MXFP4_STRUCT,
    decode=_decode_mxfp4,
    encode=_encode_mxfp4,
)
NVFP4 = GgmlType(
    name="nvfp4",
    type_id=40,
    block_size=64,
    struct=NVFP4_STRUCT,
    decode=_decode_nvfp4,
    encode=_encode_nvfp4,
    largest=6 * 448.0,
)

register(GgmlFormat(MXFP4), GgmlFormat(NVFP4))
