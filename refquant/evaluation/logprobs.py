"""From logits to log-probabilities, a few rows at a time so that they stay in cache.

float32 throughout, but for each row's sum of exponentials and what is made of it, which are float64.
"""

from collections.abc import Iterator

import numpy as np

from refquant.arrays import Float32, Float64, Int64
from refquant.models.threads import spread

BLOCK_BYTES = 3 << 18  # rows worked on together: 768 KiB, which a core's second-level cache holds


def row_blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices of consecutive rows of `width` float32, about BLOCK_BYTES each and at least one row."""
    step = max(1, BLOCK_BYTES // (4 * width))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def token_nll(logits: Float32, targets: Int64) -> Float64:
    """Negative log-likelihood of each row's target, in nats.

    Args:
        logits: float32 (rows, vocabulary). Overwritten.
        targets: int64 (rows,), each below the vocabulary.

    Returns:
        float64 (rows,): log Σ exp(x − max x) − (x_target − max x), with x − max x rounded to float32. NaN where a row
        holds a NaN or +inf, +inf where the target's logit is −inf.
    """
    return np.concatenate(spread(lambda some: _token_nll(logits[some], targets[some]), len(targets)))


def _token_nll(logits: Float32, targets: Int64) -> Float64:
    nll = np.empty(len(targets))
    for rows in row_blocks(*logits.shape):
        block = logits[rows]  # (rows in cache, vocabulary)
        picked = _shift(block, targets[rows])
        np.exp(block, out=block)
        nll[rows] = np.log(block.sum(-1, dtype=np.float64)) - picked
    return nll


def log_softmax(logits: Float32, targets: Int64) -> Float64:
    """Turn logits into log-probabilities in place, and return `token_nll` of the targets, to the same bits."""
    nll = np.empty(len(targets))
    scratch = np.empty_like(logits[next(row_blocks(*logits.shape), slice(0))])
    for rows in row_blocks(*logits.shape):
        block = logits[rows]
        picked = _shift(block, targets[rows])
        exponentials = np.exp(block, out=scratch[: len(block)])
        log_sum = np.log(exponentials.sum(-1, dtype=np.float64))
        block -= log_sum.astype(np.float32)[:, None]
        nll[rows] = log_sum - picked
    return nll


def _shift(block: Float32, targets: Int64) -> Float64:
    """Subtract each row's largest logit in place, so that no exponential overflows; return the targets' values."""
    with np.errstate(invalid="ignore"):  # inf − inf: the NaN goes on to the result
        block -= block.max(-1, keepdims=True)
    return block[np.arange(len(block)), targets].astype(np.float64)
