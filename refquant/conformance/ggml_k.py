"""spec/ggml_k.md read a second time, one weight at a time: how the K types decode, in plain Python numbers.

`ELEMENTS` has a function for each type: the bytes of one block, and the position of a weight in it, to its value.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from refquant.conformance.definitions import f32

Element = Callable[[bytes, int], np.float32]


def _float16(block: bytes, offset: int) -> float:
    return float(struct.unpack_from("<e", block, offset)[0])


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _with_minimum(d: float, scale: int, code: int, dmin: float, minimum: int) -> np.float32:
    """f32(f32(f32(d · scale) · code) − f32(dmin · minimum))."""
    return np.float32(f32(f32(d * scale) * code) - f32(dmin * minimum))


def _q2_k(block: bytes, i: int) -> np.float32:
    scales, qs, d, dmin = block[:16], block[16:80], _float16(block, 80), _float16(block, 82)
    byte = qs[32 * (i // 128) + i % 32]
    code = byte >> 2 * (i % 128 // 32) & 3
    return _with_minimum(d, scales[i // 16] & 15, code, dmin, scales[i // 16] >> 4)


def _q3_k(block: bytes, i: int) -> np.float32:
    hmask, qs, scales, d = block[:32], block[32:96], block[96:108], _float16(block, 108)
    low = qs[32 * (i // 128) + i % 32] >> 2 * (i % 128 // 32) & 3
    high = hmask[i % 32] >> i // 32 & 1
    j = i // 16
    scale = (scales[j % 8] >> 4 * (j // 8) & 15) + 16 * (scales[8 + j % 4] >> 2 * (j // 4) & 3)
    return np.float32(f32(d * (scale - 32)) * (low + 4 * high - 4))


def _six_bits(packed: bytes, j: int) -> tuple[int, int]:
    """Scale j and minimum j of the twelve bytes of q4_k and q5_k."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) + 16 * (packed[j - 4] >> 6), (packed[j + 4] >> 4) + 16 * (packed[j] >> 6)


def _nibble(qs: bytes, i: int) -> int:
    byte = qs[32 * (i // 64) + i % 32]
    return byte >> 4 if i % 64 >= 32 else byte & 15


def _q4_k(block: bytes, i: int) -> np.float32:
    scale, minimum = _six_bits(block[4:16], i // 32)
    return _with_minimum(_float16(block, 0), scale, _nibble(block[16:], i), _float16(block, 2), minimum)


def _q5_k(block: bytes, i: int) -> np.float32:
    scale, minimum = _six_bits(block[4:16], i // 32)
    code = _nibble(block[48:], i) + 16 * (block[16 + i % 32] >> i // 32 & 1)
    return _with_minimum(_float16(block, 0), scale, code, _float16(block, 2), minimum)


def _q6_k(block: bytes, i: int) -> np.float32:
    ql, qh, scales, d = block[:128], block[128:192], block[192:208], _float16(block, 208)
    part, quarter, place = i // 128, i % 128 // 32, i % 32
    low = ql[64 * part + 32 * (quarter % 2) + place] >> 4 * (quarter // 2) & 15
    high = qh[32 * part + place] >> 2 * quarter & 3
    return np.float32(f32(d * _signed(scales[i // 16])) * (low + 16 * high - 32))


def _q8_k(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<f", block)
    return np.float32(f32(d * _signed(block[4 + i])))


ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {"q2_k": _q2_k, "q3_k": _q3_k, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k, "q8_k": _q8_k}
)
