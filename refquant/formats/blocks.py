"""Blocks of a flattened tensor: consecutive weights that share a scale, the last block often short."""

from collections.abc import Iterator

import numpy as np

from refquant.arrays import Float32

_WEIGHTS_AT_ONCE = 1 << 17


def as_blocks(x: Float32, block_size: int) -> Float32:
    """(n,) as (blocks, block_size), zeros filling a short last block."""
    if x.size % block_size == 0:
        return x.reshape(-1, block_size)
    padded = np.zeros((-(-x.size // block_size), block_size), np.float32)
    padded.reshape(-1)[: x.size] = x
    return padded


def in_slices(blocks: Float32) -> Iterator[slice]:
    """Runs of whole blocks, few enough weights that the intermediate arrays of one run stay in the cache."""
    step = max(1, _WEIGHTS_AT_ONCE // blocks.shape[1])
    for start in range(0, len(blocks), step):
        yield slice(start, start + step)


def absmax_of(blocks: Float32) -> Float32:
    """The largest magnitude in each block, (blocks, block_size) to (blocks,); +0 for a block of zeros."""
    # Two reductions instead of one over `abs(blocks)`: no temporary of the tensor's size.
    absmax: Float32 = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))
    return absmax + np.float32(0)  # −0 becomes +0


def scale_blocks(x: Float32, scales: Float32, block_size: int) -> Float32:
    """Multiply each block of x, (n,), by its scale, in place; returns x."""
    whole = x.size // block_size
    x[: whole * block_size].reshape(whole, block_size)[...] *= scales[:whole, None]
    x[whole * block_size :] *= scales[whole:]
    return x
