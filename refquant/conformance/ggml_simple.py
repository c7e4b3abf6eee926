"""spec/ggml_simple.md, ggml_float.md, ggml_ternary.md and ggml_fp4.md read a second time, a weight at a time.

`ELEMENTS` has a function for each type: the bytes of one block, and the position of a weight in it, to its value.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from refquant.conformance.definitions import f32, product

Element = Callable[[bytes, int], np.float32]

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _half(block: bytes, offset: int = 0) -> float:
    return float(struct.unpack_from("<e", block, offset)[0])


def _nibble(qs: bytes, i: int, size: int) -> int:
    """Code i of a run of `size`, whose two halves share bytes."""
    return qs[i % (size // 2)] >> 4 * (i // (size // 2)) & 15


def _fifth_bit(qh: bytes, i: int) -> int:
    return 16 * (int.from_bytes(qh, "little") >> i & 1)


def _plus(a: np.float32, b: float) -> np.float32:
    return np.float32(f32(float(a) + b))


def _q1_0(block: bytes, i: int) -> np.float32:
    return product(1 if block[2 + i // 8] >> i % 8 & 1 else -1, _half(block))


def _q2_0(block: bytes, i: int) -> np.float32:
    return product((block[2 + i // 4] >> 2 * (i % 4) & 3) - 1, _half(block))


def _q4_0(block: bytes, i: int) -> np.float32:
    return product(_nibble(block[2:], i, 32) - 8, _half(block))


def _q4_1(block: bytes, i: int) -> np.float32:
    return _plus(product(_nibble(block[4:], i, 32), _half(block)), _half(block, 2))


def _q5_0(block: bytes, i: int) -> np.float32:
    return product(_nibble(block[6:], i, 32) + _fifth_bit(block[2:6], i) - 16, _half(block))


def _q5_1(block: bytes, i: int) -> np.float32:
    code = _nibble(block[8:], i, 32) + _fifth_bit(block[4:8], i)
    return _plus(product(code, _half(block)), _half(block, 2))


def _q8_0(block: bytes, i: int) -> np.float32:
    return product(struct.unpack_from("<b", block, 2 + i)[0], _half(block))


def _q8_1(block: bytes, i: int) -> np.float32:
    return product(struct.unpack_from("<b", block, 4 + i)[0], _half(block))


def _f16(block: bytes, i: int) -> np.float32:
    return np.float32(_half(block))


def _bf16(block: bytes, i: int) -> np.float32:
    return np.float32(struct.unpack("<f", b"\0\0" + block)[0])


def _tq1_0(block: bytes, i: int) -> np.float32:
    if i < 160:
        byte, digit = block[i % 32], i // 32
    elif i < 240:
        byte, digit = block[32 + i % 16], (i - 160) // 16
    else:
        byte, digit = block[48 + i % 4], (i - 240) // 4
    fraction = byte * 3**digit % 256
    return product(3 * fraction // 256 - 1, _half(block, 52))


def _tq2_0(block: bytes, i: int) -> np.float32:
    byte = block[32 * (i // 128) + i % 32]
    return product((byte >> 2 * (i % 128 // 32) & 3) - 1, _half(block, 64))


def _e2m1(code: int) -> float:
    return -_E2M1[code - 8] if code > 8 else _E2M1[code % 8]  # code 8 is +0


def _mxfp4(block: bytes, i: int) -> np.float32:
    return np.float32(f32(_e2m1(_nibble(block[1:], i, 32)) * 2.0 ** (block[0] - 127)))


def _nvfp4(block: bytes, i: int) -> np.float32:
    part, byte = i // 16, block[i // 16]
    exponent, fraction = byte >> 3 & 15, byte & 7
    scale = (1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction * 2.0**-9
    if byte == 0x7F:
        scale = 0.0
    return np.float32(_e2m1(_nibble(block[4 + 8 * part : 12 + 8 * part], i % 16, 16)) * scale)


ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {
        "q1_0": _q1_0,
        "q2_0": _q2_0,
        "q4_0": _q4_0,
        "q4_1": _q4_1,
        "q5_0": _q5_0,
        "q5_1": _q5_1,
        "q8_0": _q8_0,
        "q8_1": _q8_1,
        "f16": _f16,
        "bf16": _bf16,
        "tq1_0": _tq1_0,
        "tq2_0": _tq2_0,
        "mxfp4": _mxfp4,
        "nvfp4": _nvfp4,
    }
)
