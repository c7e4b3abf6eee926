"""spec/ggml_iq1.md read a second time, one weight at a time: how iq1_s and iq1_m decode, in plain Python numbers.

`ELEMENTS` has a function for each type: the bytes of one block, and the position of a weight in it, to its value.
"""

import struct
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import numpy as np

from refquant.conformance.definitions import product
from refquant.formats.tables import load_words

Element = Callable[[bytes, int], np.float32]


@cache
def _points() -> list[int]:
    """Grid points, eight codes of two bits each."""
    return [int(word) for word in load_words("iq1")]


def _level(point: int, down: bool, i: int) -> float:
    """Weight i of a grid point: −1, 0 or 1, an eighth higher or lower."""
    code = _points()[point] >> 2 * (i % 8) & 3
    return code - 1 + (-0.125 if down else 0.125)


def _iq1_s(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    run, group = i // 32, i % 32 // 8
    (word,) = struct.unpack_from("<H", block, 34 + 2 * run)
    point = block[2 + i // 8] + 256 * (word >> 3 * group & 7)
    scale = float(product(2 * (word >> 12 & 7) + 1, d))
    return product(_level(point, word >= 1 << 15, i), scale)


def _iq1_m(block: bytes, i: int) -> np.float32:
    words = struct.unpack_from("<4H", block, 48)
    bits = sum((word >> 12) << 4 * k for k, word in enumerate(words))
    (d,) = struct.unpack("<e", bits.to_bytes(2, "little"))
    run, group = i // 16, i // 8
    scale = float(product(2 * (words[run // 4] >> 3 * (run % 4) & 7) + 1, d))
    nibble = block[32 + group // 2] >> 4 * (group % 2) & 15
    point = block[group] + 256 * (nibble & 7)
    return product(_level(point, nibble >= 8, i), scale)


ELEMENTS: Mapping[str, Element] = MappingProxyType({"iq1_s": _iq1_s, "iq1_m": _iq1_m})
