"""Blockwise 8-bit dynamic quantization: 256 codes and one float32 absmax a block (spec/codebook.md).

It is the format `int8-dynamic`, and what double quantization does to the block maxima of nf4 and fp4.
"""

from functools import cache

import numpy as np

from refquant.arrays import Float32, UInt8
from refquant.formats.blocks import absmax_of, as_blocks, in_slices, scale_blocks
from refquant.formats.tables import load_table

_BINS = 65536


def quantize_dynamic8(x: Float32, block_size: int) -> tuple[UInt8, Float32]:
    """Codes (n,) and absmax (blocks,) of finite numbers (n,). The page numbers the steps."""
    blocks = as_blocks(x, block_size)  # (blocks, block_size)
    absmax = absmax_of(blocks)  # B1
    with np.errstate(divide="ignore", over="ignore"):  # 1/0 and 1/subnormal are infinite
        inverse = np.reciprocal(absmax)[:, None]  # B2
    codes = np.empty(blocks.shape, np.uint8)
    for some in in_slices(blocks):
        codes[some] = _codes(blocks[some], inverse[some])
    return codes.reshape(-1)[: x.size], absmax


def _codes(blocks: Float32, inverse: Float32) -> UInt8:
    with np.errstate(over="ignore", invalid="ignore"):  # 0·∞ is NaN
        unit = blocks * inverse  # B3
    unit = np.where(np.isnan(unit), np.float32(-1), unit.clip(-1, 1))  # B4
    half = (unit + np.float32(1)) * np.float32(0.5)  # B5
    position = half * np.float32(_BINS - 1) + np.float32(0.5)  # B6
    return _code_of_bin()[position.astype(np.uint16)]  # B7, B8


def dequantize_dynamic8(codes: UInt8, absmax: Float32, block_size: int) -> Float32:
    """float32 (n,): the code's value times the block's absmax, rounded once."""
    return scale_blocks(load_table("dynamic8")[codes], absmax, block_size)


@cache
def _code_of_bin() -> UInt8:
    """The code that each of the 65,536 bins of [−1, 1] stands for: the nearest to the bin's lower edge, ties below."""
    table = load_table("dynamic8")
    bins = np.float32(-1) + (np.arange(_BINS, dtype=np.float32) * np.float32(2)) / np.float32(_BINS - 1)
    midpoints = np.float32(0.5) * (table[:-1] + table[1:])
    return np.searchsorted(midpoints, bins, side="left").astype(np.uint8)
