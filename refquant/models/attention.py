"""Causal attention in blocks of queries, so that keys which a block may not see are never multiplied."""

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32, Int64

BLOCK = 64  # queries at a time: the scores of a block stay in a core's cache
_SAFE = 50.0  # e^±50, and sums and products of such, are far from float32's ends


def attend(q: Float32, k: Float32, v: Float32, window: int | None, soft_cap: float | None) -> Float32:
    """Softmax of scores times values, each query over its own position and those before it.

    Args:
        q: scaled queries of the last positions, (batch, kv heads, tokens, group, head_dim), C-contiguous; `group`
            query heads share a key/value head.
        k: keys of all positions, (batch, kv heads, head_dim, length).
        v: values of all positions, (batch, kv heads, length, head_dim).
        window: how many positions a query sees, its own among them; None for all.
        soft_cap: c in c·tanh(score / c), or None.

    Returns:
        (batch, tokens, kv heads, group, head_dim).
    """
    batch, kv_heads, tokens, group, head_dim = q.shape
    length = v.shape[2]
    first = length - tokens  # the first query's position
    out = np.empty((batch, tokens, kv_heads, group, head_dim), np.float32)
    scratch = np.empty(min(BLOCK, tokens) * group * length, np.float32)
    for start in range(0, tokens, BLOCK):
        stop = min(start + BLOCK, tokens)
        low, high = 0 if window is None else max(0, first + start - window + 1), first + stop
        rows = (stop - start) * group
        scores = scratch[: rows * (high - low)].reshape(rows, high - low)
        hidden = _hidden(np.arange(first + start, high), np.arange(low, high), window)
        for b in range(batch):
            for h in range(kv_heads):
                queries = q[b, h, start:stop].reshape(rows, head_dim)  # (block·group, head_dim)
                np.matmul(queries, k[b, h, :, low:high], out=scores)
                if soft_cap is not None:
                    cap(scores, soft_cap)
                by_query = scores.reshape(stop - start, group, high - low)
                for strip, where in hidden:
                    np.copyto(by_query[..., strip], -np.inf, where=where)
                values = _softmax_times(scores, v[b, h, low:high])  # (block·group, head_dim)
                out[b, start:stop, h] = values.reshape(stop - start, group, head_dim)
    return out


def cap(x: Float32, limit: float) -> None:
    """limit·tanh(x / limit), in place."""
    x /= np.float32(limit)
    np.tanh(x, out=x)
    x *= np.float32(limit)


def _hidden(queries: Int64, keys: Int64, window: int | None) -> list[tuple[slice, npt.NDArray[np.bool_]]]:
    """Which keys lie after a query, or a window or more before it: strips of columns, and a mask (block, 1, …) of each.

    Only the block's own columns can lie after a query, and only as many of the first before a window.
    """
    block = len(queries)
    after, before = slice(max(0, len(keys) - block), None), slice(0, block)
    masks = [(after, queries[:, None, None] < keys[after])]
    if window is not None:
        masks.append((before, queries[:, None, None] - keys[before] >= window))
    return masks


def _softmax_times(scores: Float32, values: Float32) -> Float32:
    """Softmax over the last axis, times values. Overwrites scores.

    The sum divides the product, which is narrower than the scores. A softmax does not change when a row is shifted, so
    only rows whose largest score could take the exponential out of range make the shift worth its time.
    """
    peak = scores.max(axis=-1, keepdims=True)  # (rows, 1)
    if not np.abs(peak).max() < _SAFE:
        scores -= peak
    np.exp(scores, out=scores)
    product = scores @ values  # (rows, head_dim)
    product /= np.einsum("qk->q", scores)[:, None]
    return product
