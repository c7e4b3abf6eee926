"""spec/codebook.md read a second time, one element at a time: definitions, bounds and exceptions of its formats."""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise

import numpy as np

from refquant.arrays import Array, Float32, Float64, Shape
from refquant.conformance.bounds import encodable_range, error_bound
from refquant.conformance.definitions import codes, element, f32, product, stored_code
from refquant.conformance.guarantees import exceptions
from refquant.formats.base import QuantizedTensor
from refquant.formats.codebook import FourBit, Int8Dynamic
from refquant.formats.tables import load_table


@element.register
def _four_bit_element(fmt: FourBit, parts: Mapping[str, Array], shape: Shape, index: Shape) -> np.float32:
    flat = int(np.ravel_multi_index(index, shape))
    block = flat // fmt.block_size
    absmax = float(parts["absmax"][block])
    if fmt.double_quant:
        value = float(load_table("dynamic8")[parts["absmax"][block]])
        difference = product(value, float(parts["nested_absmax"][block // 256]))
        absmax = f32(float(difference) + float(parts["nested_offset"][0]))
    byte = int(parts["codes"][flat // 2])
    return product(float(load_table(fmt.table)[byte & 15 if flat % 2 else byte >> 4]), absmax)


@element.register
def _dynamic_element(fmt: Int8Dynamic, parts: Mapping[str, Array], shape: Shape, index: Shape) -> np.float32:
    flat = int(np.ravel_multi_index(index, shape))
    value = load_table("dynamic8")[parts["codes"][flat]]
    return product(float(value), float(parts["absmax"][flat // fmt.block_size]))


@stored_code.register
def _four_bit_code(fmt: FourBit, parts: Mapping[str, Array], shape: Shape, index: Shape) -> int:
    flat = int(np.ravel_multi_index(index, shape))
    byte = int(parts["codes"][flat // 2])
    return byte & 15 if flat % 2 else byte >> 4


@stored_code.register
def _dynamic_code(fmt: Int8Dynamic, parts: Mapping[str, Array], shape: Shape, index: Shape) -> int:
    return int(parts["codes"][int(np.ravel_multi_index(index, shape))])


@codes.register
def _four_bit_codes(fmt: FourBit, w: Float32) -> list[int]:
    table = [float(x) for x in load_table(fmt.table)]
    order = sorted(range(16), key=lambda code: table[code])  # stable: 0 before −0
    midpoints = [f32((table[a] + table[b]) / 2) for a, b in pairwise(order)]
    least = f32(1e-38)

    def encode(block: Sequence[float]) -> Callable[[float], int]:
        divisor = max(max(map(abs, block)), least)
        if len(block) < fmt.block_size:
            return lambda x: order[bisect_left(midpoints, f32(x / divisor))]
        inverse = f32(1 / divisor)
        return lambda x: order[bisect_left(midpoints, f32(x * inverse))]

    return _by_blocks(w, fmt.block_size, encode)


@codes.register
def _dynamic_codes(fmt: Int8Dynamic, w: Float32) -> list[int]:
    def encode(block: Sequence[float]) -> Callable[[float], int]:
        absmax = max(map(abs, block))
        inverse = f32(1 / absmax) if absmax else math.inf

        def code(x: float) -> int:
            unit = f32(x * inverse)
            unit = -1.0 if math.isnan(unit) else max(-1.0, min(1.0, unit))
            return _code_of_bin(int(f32(f32(f32(unit + 1) * 0.5 * 65535) + 0.5)))

        return code

    return _by_blocks(w, fmt.block_size, encode)


@cache
def _code_of_bin(position: int) -> int:
    values = [float(x) for x in load_table("dynamic8")]
    edge = f32(f32(2 * position / 65535) - 1)
    return sum(f32(f32(a + b) * 0.5) < edge for a, b in pairwise(values))


def _by_blocks(w: Float32, size: int, encode: Callable[[Sequence[float]], Callable[[float], int]]) -> list[int]:
    numbers = [float(x) for x in w.ravel()]
    found: list[int] = []
    for start in range(0, len(numbers), size):
        block = numbers[start : start + size]
        code = cache(encode(block))
        found += [code(x) for x in block]
    return found


@encodable_range.register
def _(fmt: FourBit) -> tuple[int, int]:
    return (-126, 120) if fmt.double_quant else (-126, 127)  # the maxima of 127 blocks add up to a float32


# What float32 adds to half a gap, in units of the absmax: the roundings of the reciprocal, of the product with it, of
# the midpoint and of the decoded product.
_ROUNDINGS = 4 * 2.0**-24


@error_bound.register
def _(fmt: FourBit, q: QuantizedTensor) -> Float64:
    absmax = _each(_absmax(fmt, q.parts), fmt.block_size, q.shape)
    off = _each(_absmax_error(q.parts), fmt.block_size, q.shape) if fmt.double_quant else np.zeros(q.shape)
    packed = q.parts["codes"]
    code = np.stack([packed >> 4, packed & 15], axis=-1).ravel()[: math.prod(q.shape)].reshape(q.shape)
    bound: Float64 = (_half_gaps(fmt.table)[code] + _ROUNDINGS) * (absmax + off)
    return bound + np.abs(load_table(fmt.table)[code]) * off


@error_bound.register
def _(fmt: Int8Dynamic, q: QuantizedTensor) -> Float64:
    absmax = _each(q.parts["absmax"], fmt.block_size, q.shape)
    return _dynamic_error(q.parts["codes"].reshape(q.shape)) * absmax


def _dynamic_error(code: Array) -> Float64:
    """Half a gap and half a bin of 2/65,535, in units of the absmax."""
    error: Float64 = _half_gaps("dynamic8")[code] + 1 / 65535 + _ROUNDINGS
    return error


def _absmax(fmt: FourBit, parts: Mapping[str, Array]) -> Float64:
    if not fmt.double_quant:
        return parts["absmax"].astype(np.float64)
    nested = np.repeat(parts["nested_absmax"].astype(np.float64), 256)[: len(parts["absmax"])]
    return np.abs(load_table("dynamic8")[parts["absmax"]] * nested + parts["nested_offset"])


def _absmax_error(parts: Mapping[str, Array]) -> Float64:
    """How far a double-quantized absmax may be off: the 8-bit error, and the roundings of two sums."""
    nested = np.repeat(parts["nested_absmax"].astype(np.float64), 256)[: len(parts["absmax"])]
    return _dynamic_error(parts["absmax"]) * nested + 2.0**-22 * (nested + np.abs(parts["nested_offset"]))


def _each(per_block: Array, block_size: int, shape: Shape) -> Float64:
    return np.repeat(per_block.astype(np.float64), block_size)[: math.prod(shape)].reshape(shape)


@cache
def _half_gaps(table: str) -> Float64:
    """For each code, half the gap to its farther neighbour; the end codes reach as far as ±1."""
    values = load_table(table).astype(np.float64)
    order = np.argsort(values, kind="stable")
    gaps = np.diff(values[order]) / 2
    below, above = np.r_[values[order[0]] + 1, gaps], np.r_[gaps, 1 - values[order[-1]]]
    half = np.empty(len(values))
    half[order] = np.maximum(below, above)
    return half


@exceptions.register
def _(fmt: FourBit) -> dict[str, str]:
    without = {
        "negating_the_input_negates_the_output": (
            "the table is not odd" if fmt.table == "nf4" else "a tie goes to the lower value on both sides of zero"
        ),
        "rows_quantized_alone_give_what_they_give_together": "the tensor is flattened: a block may span rows",
    }
    if fmt.table == "fp4":
        without["quantizing_what_was_decoded_gives_the_same_codes"] = "code 8 decodes to −0, and −0 gets code 0"
    if fmt.double_quant:
        shared = "every block's absmax is stored relative to the mean of all"
        without["quantizing_what_was_decoded_gives_the_same_codes"] = "the decoded maxima have another mean"
        without["blocks_quantized_alone_give_what_they_give_together"] = shared
        without["permuting_blocks_permutes_the_output"] = shared
    return without


@exceptions.register
def _(fmt: Int8Dynamic) -> dict[str, str]:
    return {
        "quantizing_what_was_decoded_gives_the_same_codes": "there is no −1, and codes inside one bin fall together",
        "negating_the_input_negates_the_output": "the table has 1 and no −1, and zero lies inside a bin",
        "zero_stays_zero": "zero lies in a bin whose code is 2.125e-5",
        "rows_quantized_alone_give_what_they_give_together": "the tensor is flattened: a block may span rows",
    }
