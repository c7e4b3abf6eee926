"""spec/ggml_iq4.md read a second time, one weight at a time: how iq4_nl and iq4_xs decode, in plain Python numbers.

`ELEMENTS` has a function for each type: the bytes of one block, and the position of a weight in it, to its value.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from refquant.conformance.definitions import f32, product

Element = Callable[[bytes, int], np.float32]

_POSITIVE = (1, 13, 25, 38, 53, 69, 89, 113)
_NEGATIVE = (-127, -104, -83, -65, -49, -35, -22, -10)


def _value(qs: bytes, i: int) -> int:
    byte = qs[16 * (i // 32) + i % 16]
    code = byte >> 4 if i % 32 >= 16 else byte & 15
    return _POSITIVE[code - 8] if code >= 8 else _NEGATIVE[code]


def _iq4_nl(block: bytes, i: int) -> np.float32:
    (d,) = struct.unpack_from("<e", block)
    return product(_value(block[2:], i), d)


def _iq4_xs(block: bytes, i: int) -> np.float32:
    d, high = struct.unpack_from("<eH", block)
    run = i // 32
    low = block[4 + run // 2] >> 4 * (run % 2) & 15
    scale = low + 16 * (high >> 2 * run & 3) - 32
    return product(_value(block[8:], i), f32(float(product(scale, d))))


ELEMENTS: Mapping[str, Element] = MappingProxyType({"iq4_nl": _iq4_nl, "iq4_xs": _iq4_xs})
