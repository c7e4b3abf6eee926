"""Causal attention in blocks of queries, so that keys which a block may not see are never multiplied."""

import numpy as np

from refquant.arrays import Float32

BLOCK = 128  # queries at a time: the scores of a block stay in cache


def attend(q: Float32, k: Float32, v: Float32, window: int | None, soft_cap: float | None) -> Float32:
    """Softmax of scores times values, each query over its own position and those before it.

    Args:
        q: scaled queries of the last positions, (batch, kv heads, tokens, group, head_dim); `group` query heads share
            a key/value head.
        k: keys of all positions, (batch, kv heads, length, head_dim).
        v: values, k's shape.
        window: how many positions a query sees, its own among them; None for all.
        soft_cap: c in c·tanh(score / c), or None.

    Returns:
        (batch, tokens, kv heads, group, head_dim).
    """
    batch, kv_heads, tokens, group, head_dim = q.shape
    first = k.shape[2] - tokens  # the first query's position
    out = np.empty((batch, tokens, kv_heads, group, head_dim), np.float32)
    for start in range(0, tokens, BLOCK):
        stop = min(start + BLOCK, tokens)
        low, high = 0 if window is None else max(0, first + start - window + 1), first + stop
        queries = q[:, :, start:stop].reshape(batch, kv_heads, (stop - start) * group, head_dim)
        scores = queries @ k[:, :, low:high].swapaxes(2, 3)  # (batch, kv heads, block·group, keys)
        if soft_cap is not None:
            scores /= np.float32(soft_cap)
            np.tanh(scores, out=scores)
            scores *= np.float32(soft_cap)
        by_query = scores.reshape(batch, kv_heads, stop - start, group, high - low)
        _hide(by_query, np.arange(first + start, high), np.arange(low, high), window)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(axis=-1, keepdims=True)
        values = scores @ v[:, :, low:high]  # (batch, kv heads, block·group, head_dim)
        values /= total
        out[:, start:stop] = values.reshape(batch, kv_heads, stop - start, group, head_dim).swapaxes(1, 2)
    return out


def _hide(scores: Float32, queries: np.ndarray, keys: np.ndarray, window: int | None) -> None:
    """Set scores of keys after the query, or a window or more before it, to −∞.

    Only the block's own columns can lie after a query, and only its first columns before a window.
    """
    block = len(queries)
    strips = [slice(max(0, len(keys) - block), None)]
    if window is not None:
        strips.append(slice(0, block))
    for strip in strips:
        behind = queries[:, None] - keys[strip]  # (block, keys of the strip): how far back a key lies
        hidden = behind < 0 if window is None else (behind < 0) | (behind >= window)
        np.copyto(scores[..., strip], -np.inf, where=hidden[:, None])
