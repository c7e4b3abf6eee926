"""The order in which torch adds float32 numbers on the CPU, on one thread (spec/codebook.md, "The mean").

Double quantization stores the mean of the block maxima, and its bits depend on the order of the sum. NumPy's own
pairwise sum is another order.
"""

import numpy as np

from refquant.arrays import Float32

_LANES = 8
_STREAMS = 4
_LEVELS = 4


def mean(x: Float32) -> np.float32:
    """The mean of x, shape (n,) with n > 0: `cascade_sum` over n, rounded once. Infinite if the sum overflows."""
    return np.float32(cascade_sum(x) / np.float32(len(x)))


def cascade_sum(x: Float32) -> np.float32:
    """The sum of x, shape (n,), in the order of ATen's CPU kernel (aten/src/ATen/native/cpu/SumKernel.cpp)."""
    if len(x) < _LANES:
        return np.float32(_in_streams(x.reshape(-1, 1))[0])
    vectors = len(x) // _LANES
    lanes = _in_streams(x[: vectors * _LANES].reshape(vectors, _LANES))  # (8,)
    return np.float32(_in_turn(np.concatenate([x[vectors * _LANES :], lanes])))


def _in_streams(vectors: Float32) -> Float32:
    """(count, lanes) to (lanes,): four interleaved streams, what is left over going to the first."""
    whole = len(vectors) // _STREAMS
    streams = _in_levels(vectors[: whole * _STREAMS].reshape(whole, _STREAMS, vectors.shape[1]))  # (4, lanes)
    first = _in_turn(np.concatenate([streams[:1], vectors[whole * _STREAMS :]]))
    return _in_turn(np.concatenate([first[None], streams[1:]]))


def _in_levels(rows: Float32) -> Float32:
    """(count, …) to (…): runs of `run` rows are summed, then runs of those sums, and so on; then the remainders."""
    run = 1 << max(4, (len(rows) - 1).bit_length() // _LEVELS)
    remainders = []
    for _ in range(_LEVELS - 1):
        whole = len(rows) // run
        remainders.append(_in_turn(rows[whole * run :]))
        rows = _in_turn(np.moveaxis(rows[: whole * run].reshape(whole, run, *rows.shape[1:]), 1, 0))
    return _in_turn(np.stack([*remainders, _in_turn(rows)]))


def _in_turn(rows: Float32) -> Float32:
    """(count, …) to (…): zero, plus each row in turn."""
    total = np.zeros(rows.shape[1:], np.float32)
    for row in rows:
        total = total + row
    return total
