"""What the IQ2 and IQ3 types share around their search: weights, signs, four-bit scales, decoding (spec/ggml_iq.md).

While they are encoded, sub-blocks are columns: column k · blocks + b is sub-block k of block b.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array, Float32, UInt8
from refquant.formats.ggml import BlockError
from refquant.formats.ggml_grid import GridName, Indices, grid_points
from refquant.formats.ggml_grid_search import Choice
from refquant.formats.ggml_search import as_columns, sum_positions
from refquant.formats.ggml_signs import GROUP, even_signs, multipliers
from refquant.formats.rounding import nearest_int

BLOCK = 256

_TOP = np.float32(31)  # the odd number 2 · 15 + 1 that the largest scale of a block is mapped to
_SEVENS = np.array([0, 7, 14, 21], np.uint32)
_HALF = np.float32(0.5)
_ZERO = np.float32(0)
_ONE = np.float32(1)


class Settled(NamedTuple):
    """What is stored of sub-blocks: scales (sub-blocks, blocks), and by column the grid points and signs of groups."""

    scale: Float32
    points: Indices
    signs: UInt8


def of_all_rows(w: Float32, importance: Float32) -> tuple[Float32, Float32]:
    """The blocks of all rows, and each one's importance, both (blocks, 256).

    Args:
        w: float32 (rows, blocks a row, 256).
        importance: float32 (blocks a row, 256).
    """
    return w.reshape(-1, BLOCK), np.broadcast_to(importance, w.shape).reshape(-1, BLOCK)


def sum_of_squares(w: Float32) -> Float32:
    """Σ x² of every block, in the order of its weights: (blocks, 256) to (blocks,)."""
    return sum_positions(as_columns(w * w, BLOCK))


def weighted_by(importance: Float32, w: Float32, variance: Float32) -> Float32:
    """importance · √(variance + x²): (blocks, 256), the variance (blocks,)."""
    return importance * np.sqrt(variance[:, None] + w * w)


def as_sub_blocks(w: Float32, size: int) -> Float32:
    """(blocks, 256) to columns of sub-blocks, (size, sub-blocks · blocks)."""
    positions = as_columns(w, BLOCK).reshape(-1, size, len(w))  # (sub-blocks, size, blocks)
    # Contiguous for a single block too, where reshaping gives a view whose sums would be pairwise.
    return np.ascontiguousarray(positions.swapaxes(0, 1).reshape(size, -1))


def by_block(groups: Array, blocks: int) -> Array:
    """(groups, sub-blocks · blocks) to (blocks, sub-blocks · groups), in the order of the weights."""
    return groups.reshape(len(groups), -1, blocks).transpose(2, 1, 0).reshape(blocks, -1)


def settled(choice: Choice, signs: UInt8, empty: npt.NDArray[np.bool_], blocks: int) -> Settled:
    """Scales, grid indices and signs as they are stored.

    A negative scale is made positive, and its signs are changed. An empty sub-block has zeros throughout.

    Raises:
        BlockError: a group without a nearest grid point, or a scale that is NaN; ggml aborts.
    """
    broken = (~empty & (choice.lost | np.isnan(choice.scale))).reshape(-1, blocks).any(axis=0)
    if broken.any():
        raise BlockError(int(np.argmax(broken)), "its weighted squares overflow float32, and ggml aborts there")
    scale = np.where(empty, _ZERO, np.abs(choice.scale)).reshape(-1, blocks)  # A3
    signs = np.where(choice.scale < 0, ~signs, signs)
    return Settled(scale, np.where(empty, 0, choice.index), np.where(empty, np.uint8(0), signs))


def four_bit_scales(scale: Float32, fudge: np.float32) -> tuple[Array, UInt8]:
    """A block's d, and for each sub-block the code c of its scale ≈ d · (2c + 1).

    Args:
        scale: float32 ≥ 0 (sub-blocks, blocks).
        fudge: what d is multiplied with after the codes are chosen.

    Returns:
        float16 (blocks,) and uint8 (sub-blocks, blocks); zeros where all scales of a block are zero.
    """
    d = scale.max(axis=0) / _TOP  # D2
    code = np.clip(nearest_int(_HALF * (_ONE / d * scale - _ONE)), 0, 15)  # D3
    return (d * fudge).astype(np.float16), np.where(d == 0, 0, code).astype(np.uint8)


def nibble_pairs(codes: UInt8) -> UInt8:
    """Four-bit codes (sub-blocks, blocks) as bytes (blocks, sub-blocks // 2), the even sub-block's the low nibble."""
    return (codes[::2] | codes[1::2] << np.uint8(4)).T


def nibbles(packed: UInt8) -> UInt8:
    """Bytes (blocks, n) to four-bit codes (blocks, 2n), the low nibble first."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1).reshape(len(packed), -1)


def pack_even_signs(signs: UInt8, scales: UInt8) -> npt.NDArray[np.uint32]:
    """A word for each sub-block of 32: four times seven sign bits, and a four-bit scale on top.

    Args:
        signs: bytes with an even number of bits, (4, 8 · blocks).
        scales: four-bit codes (8, blocks).

    Returns:
        uint32 (blocks, 8).
    """
    codes = by_block(signs, scales.shape[1]).reshape(-1, 8, 4) & np.uint8(127)
    words = scales.T.astype(np.uint32) << np.uint32(28)
    words |= (codes.astype(np.uint32) << _SEVENS).sum(axis=-1, dtype=np.uint32)
    return words


def unpack_even_signs(words: npt.NDArray[np.uint32]) -> tuple[UInt8, UInt8]:
    """The sign bytes (blocks, 32) and the four-bit scales (blocks, 8) of words (blocks, 8)."""
    signs = even_signs().take(words[..., None] >> _SEVENS & np.uint32(127))
    return signs.reshape(len(words), -1), (words >> np.uint32(28)).astype(np.uint8)


def scaled_points(name: GridName, magnitudes: Float32, index: Array, signs: UInt8, scale: Float32) -> Float32:
    """(scale · magnitude) · sign of every weight.

    Args:
        name: the grid.
        magnitudes: what its codes stand for.
        index: grid indices (blocks, groups).
        signs: bytes (blocks, 32).
        scale: float32 (blocks, sub-blocks).

    Returns:
        float32 (blocks, 256).
    """
    points = magnitudes[grid_points(name)]  # (size, width)
    w = points.take(index, axis=0).reshape(*scale.shape, -1)
    w *= scale[:, :, None]
    w = w.reshape(*signs.shape, GROUP)
    w *= multipliers().take(signs, axis=0)
    return w.reshape(-1, BLOCK)
