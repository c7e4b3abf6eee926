"""Formats one element and one group at a time: a second, slow reading of spec/ that shares no code with the first.

The references in refquant/formats work on whole arrays; these work on Python integers and floats. Code that agrees
with its definition on every element of every drawn tensor has read the page the same way twice.

Python's binary64 gives every binary32 result of one +, −, × or ÷ of binary32 numbers exactly, once it is rounded to
binary32: 53 bits are more than 2 · 24 + 2, so the double rounding is innocuous.
"""

import math
import struct
from collections.abc import Mapping
from functools import singledispatch

import numpy as np

from refquant.arrays import Array, Float32, Shape, UInt8
from refquant.formats.base import Format
from refquant.formats.integer import Integer


@singledispatch
def element(fmt: Format, parts: Mapping[str, Array], shape: Shape, index: Shape) -> np.float32:
    """The number at one index of a quantized tensor, as the format's page in spec/ defines it.

    Raises:
        NotImplementedError: the format has no definition here.
    """
    raise NotImplementedError(f"{type(fmt).__name__} has no element-wise definition")


@element.register
def _integer(fmt: Integer, parts: Mapping[str, Array], shape: Shape, index: Shape) -> np.float32:
    *lead, column = index
    code = _integer_code(fmt, parts, shape, index)
    if fmt.group_size is None:
        group: Shape = (0,)
    elif fmt.group_size == -1:
        group = (*lead, 0)
    else:
        group = (*lead, column // fmt.group_size)
    if fmt.symmetric:
        zero = 0
        code -= (code >> fmt.bits - 1) << fmt.bits  # two's complement
    else:
        zero = _bit_stream_code(parts["zeros"][group[:-1]], fmt.bits, group[-1])
    return product(code - zero, scale_value(parts["scales"][group], fmt.scale_dtype))


def stored_codes(fmt: Format, parts: Mapping[str, Array], shape: Shape) -> UInt8:
    """The code of every element, read out of the stored parts one by one."""
    size = math.prod(shape)
    found = [stored_code(fmt, parts, shape, tuple(map(int, np.unravel_index(i, shape)))) for i in range(size)]
    return np.array(found, np.uint8)


@singledispatch
def stored_code(fmt: Format, parts: Mapping[str, Array], shape: Shape, index: Shape) -> int:
    """The code of one element as it is stored, without its sign extended."""
    raise NotImplementedError(f"{type(fmt).__name__} has no element-wise definition")


@stored_code.register
def _integer_code(fmt: Integer, parts: Mapping[str, Array], shape: Shape, index: Shape) -> int:
    return _bit_stream_code(parts["codes"][index[:-1]], fmt.bits, index[-1])


@singledispatch
def codes(fmt: Format, w: Float32) -> list[int]:
    """The code of every weight of a tensor, in row-major order, as the format's page in spec/ defines the quantizer.

    Raises:
        NotImplementedError: the format has no definition here.
    """
    raise NotImplementedError(f"{type(fmt).__name__} has no element-wise definition")


@codes.register
def _integer_codes(fmt: Integer, w: Float32) -> list[int]:
    found: list[int] = []
    for row in [w.ravel()] if fmt.group_size is None else w.reshape(-1, w.shape[-1]):
        numbers = [float(x) for x in row]
        width = len(numbers) if fmt.group_size in (None, -1) else fmt.group_size
        for start in range(0, len(numbers), width or 1):
            found += _integer_group(fmt, numbers[start : start + (width or 1)])
    return found


def _integer_group(fmt: Integer, w: list[float]) -> list[int]:
    """Steps 1 … 5 of spec/integer.md for one group."""
    if fmt.symmetric:
        top = 2 ** (fmt.bits - 1) - 1
        step = _narrowed(f32(max(map(abs, w)) / top), fmt.scale_dtype)
        return [max(-top, min(top, round(f32(x / step)))) % 2**fmt.bits if step else 0 for x in w]
    top = 2**fmt.bits - 1
    low, high = min(0.0, *w), max(0.0, *w)
    step = _narrowed(f32(f32(high - low) / top), fmt.scale_dtype)
    if not step:
        return [0] * len(w)
    zero = max(0, min(top, round(f32(-low / step))))
    return [max(0, min(top, round(f32(x / step)) + zero)) for x in w]


def f32(x: float) -> float:
    """A Python float rounded to float32, ties to even; what is past the largest becomes an infinity."""
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def _narrowed(x: float, dtype: str) -> float:
    """A float32 rounded to the stored dtype, ties to even."""
    if dtype == "bfloat16":
        bits = int.from_bytes(struct.pack("<f", x), "little")
        upper, lower = divmod(bits, 1 << 16)
        upper += lower > 0x8000 or (lower == 0x8000 and upper % 2 == 1)
        return float(struct.unpack("<f", (upper << 16).to_bytes(4, "little"))[0])
    return float(np.dtype(dtype).type(x))


def scale_value(stored: np.generic, dtype: str) -> float:
    """A stored scale as an exact Python float."""
    if dtype == "bfloat16":
        return float(struct.unpack("<f", b"\0\0" + int(stored).to_bytes(2, "little"))[0])
    return float(stored)


def product(a: float, b: float) -> np.float32:
    """a · b rounded once to float32: at most 24 bits each, so the product is exact in binary64."""
    exact = a * b if not (math.isinf(b) and a == 0) else math.nan
    with np.errstate(over="ignore"):
        return np.float32(exact)


def _bit_stream_code(row: Array, bits: int, i: int) -> int:
    """Code i of a row: its bits are i·bits … of the row read as one little-endian number."""
    return (int.from_bytes(row.tobytes(), "little") >> i * bits) & ((1 << bits) - 1)
