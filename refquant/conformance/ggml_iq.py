"""spec/ggml_iq.md read a second time, one weight at a time: how the IQ2 and IQ3 types decode, in plain Python numbers.

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


def _iq2_xxs(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    points, word = struct.unpack_from("<4sI", block, 2 + 8 * (i // 32))
    group = i % 32 // 8
    return _eighths("iq2_xxs", points[group], i, _even_sign(word >> 7 * group & 127, i), d, word >> 28)


def _iq2_xs(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    (word,) = struct.unpack_from("<H", block, 2 + 2 * (i // 8))
    scale = block[66 + i // 32] >> 4 * (i // 16 % 2) & 15
    return _eighths("iq2_xs", word % 512, i, _even_sign(word // 512, i), d, scale)


def _iq2_s(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    group, run = i // 8, i // 32
    point = block[2 + group] + 256 * (block[66 + run] >> 2 * (group % 4) & 3)
    scale = block[74 + run] >> 4 * (i // 16 % 2) & 15
    return _eighths("iq2_s", point, i, _sign(block[34 + group], i), d, scale)


def _iq3_xxs(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    (word,) = struct.unpack_from("<I", block, 66 + 4 * (i // 32))
    code = _code("iq3_xxs", block[2 + i // 4], 3, i % 4)
    magnitude = 62 if code == 7 else 8 * code + 4
    scale = float(product(0.5, float(product(0.5 + (word >> 28), d))))
    return product(_even_sign(word >> 7 * (i % 32 // 8) & 127, i) * magnitude, scale)


def _iq3_s(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    group = i // 4
    point = block[2 + group] + 256 * (block[66 + group // 8] >> group % 8 & 1)
    scale = block[106 + i // 64] >> 4 * (i // 32 % 2) & 15
    odd = 2 * _code("iq3_s", point, 3, i % 4) + 1
    return product(_sign(block[74 + i // 8], i) * odd, float(product(2 * scale + 1, d)))


def _eighths(grid: str, point: int, i: int, sign: int, d: float, scale: int) -> np.float32:
    """A weight of an IQ2 type, whose grids are of magnitudes near 8, 24 and 40."""
    magnitude = (8, 25, 43)[_code(grid, point, 2, i % 8)]
    return product(sign * magnitude, float(product(0.25, float(product(0.5 + scale, d)))))


def _code(grid: str, point: int, bits: int, i: int) -> int:
    """Code i of a grid point."""
    return _words(grid)[point] >> bits * i & (1 << bits) - 1


@cache
def _words(grid: str) -> list[int]:
    return [int(word) for word in load_words(grid)]


def _sign(byte: int, i: int) -> int:
    return -1 if byte >> i % 8 & 1 else 1


def _even_sign(code: int, i: int) -> int:
    """The sign that seven bits hold; the eighth is set where theirs are odd in number."""
    return _sign(code + 128 * (code.bit_count() % 2), i)


ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {"iq2_xxs": _iq2_xxs, "iq2_xs": _iq2_xs, "iq2_s": _iq2_s, "iq3_xxs": _iq3_xxs, "iq3_s": _iq3_s}
)
