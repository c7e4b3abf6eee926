"""What the K types share: super-blocks of 256 weights whose sub-blocks have small integer scales (spec/ggml_k.md)."""

import numpy as np

from refquant.arrays import Array, Float32, UInt8
from refquant.formats.ggml_search import as_columns, sum_positions
from refquant.formats.rounding import nearest_int

SUPER_BLOCK = 256
LARGEST_HALF = 65504.0  # of float16


def half(x: Float32) -> Array:
    """float32 rounded to float16, ties to even, and what is beyond its range to infinity."""
    return x.astype("<f2")


def largest_of(numbers: Float32) -> Float32:
    """The largest of each row that is above 0, else +0: (blocks, sub-blocks) to (blocks,)."""
    largest: Float32 = np.fmax.reduce(numbers, axis=1)
    return np.where(largest > 0, largest, np.float32(0))


def in_steps(numbers: Float32, largest: Float32, top: int) -> UInt8:
    """top / largest times each number to the nearest integer, modulo 256 as C's uint8_t has it; 0 where largest is.

    Args:
        numbers: float32 (blocks, sub-blocks).
        largest: float32 (blocks,), not negative.
        top: the integer for the largest.
    """
    inverse = np.where(largest > 0, np.float32(top) / largest, np.float32(0))
    return nearest_int(inverse[:, None] * numbers).astype(np.uint8)


def sub_block_scales(blocks: Array, integers: Array) -> Float32:
    """A block's float16 times the integers of its sub-blocks: (blocks,) and (blocks, n) to float32 (blocks, n)."""
    product: Float32 = blocks.astype(np.float32)[:, None] * integers.astype(np.float32)
    return product


def importance_weights(w: Float32, importance: Float32, size: int, factor: int) -> tuple[Float32, Float32]:
    """What the weighted searches multiply squares with: importance · √(factor · mean of the block's w² + w²).

    Args:
        w: float32 (rows, blocks a row, 256).
        importance: float32 (blocks a row, 256).
        size: weights in a sub-block.
        factor: 1 or 2.

    Returns:
        The weights as columns, (size, sub-blocks), and the sum of each sub-block's, as columns of super-blocks,
        (256 // size, blocks).
    """
    squares = np.square(w)
    sums = sum_positions(as_columns(squares, SUPER_BLOCK))  # (blocks,), over a block's 256 in order
    sigma = np.float32(factor) * sums / np.float32(SUPER_BLOCK)
    weights = as_columns(importance * np.sqrt(sigma.reshape(*w.shape[:2], 1) + squares), size)
    return weights, as_columns(sum_positions(weights), SUPER_BLOCK // size)


def requantized(x: Float32, found: UInt8, scale: Float32, minimum: Float32 | None, low: int, high: int) -> UInt8:
    """The codes for the scales as they are stored; where such a scale is 0, those that the search found.

    Args:
        x: float32 (size, sub-blocks).
        found: the search's codes, uint8 of the same shape.
        scale: the scale of each sub-block, float32 of any shape of that many.
        minimum: what is added before the division, likewise; None where the type has none.
        low, high: the range of the integers that the scale multiplies; codes count from low.

    Returns:
        uint8 (sub-blocks, size).
    """
    scale = scale.reshape(-1)
    levels = nearest_int((x if minimum is None else x + minimum.reshape(-1)) / scale)
    np.clip(levels, low, high, out=levels)
    levels -= low
    return np.ascontiguousarray(np.where(scale == 0, found, levels).astype(np.uint8).T)


def in_planes(codes: UInt8, runs: int, bits: int) -> UInt8:
    """Codes of `bits` bits side by side in bytes: run k of the `runs` runs stands at bit k · bits.

    Args:
        codes: uint8 (..., runs, length), each below 2^bits.

    Returns:
        uint8 (..., length).
    """
    packed = codes[..., 0, :].copy()
    for k in range(1, runs):
        packed |= codes[..., k, :] << np.uint8(k * bits)
    return packed


def from_planes(packed: UInt8, runs: int, bits: int) -> UInt8:
    """The codes that `in_planes` packed: (..., length) to (..., runs, length)."""
    shifts = np.arange(0, runs * bits, bits, dtype=np.uint8)[:, None]
    codes: UInt8 = (packed[..., None, :] >> shifts) & np.uint8(2**bits - 1)
    return codes
