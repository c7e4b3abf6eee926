"""The nearest grid point of groups whose own lattice point is not on the grid (spec/ggml_iq.md, "Neighbours").

The lists of neighbours have from one to some hundred entries. Groups are taken in order of the length of their
list, in batches that stay in the cache, and every batch is one array (slots, groups): short lists repeat their end,
which changes no first minimum.
"""

from collections.abc import Iterator

import numpy as np

from refquant.arrays import Float32
from refquant.formats.ggml_grid import Grid, Indices

NONE = -1
"""The index where no neighbour has a distance that float32 can hold; ggml aborts there."""

_BATCH = 1 << 15
_LARGEST = np.finfo(np.float32).max


def nearest_neighbours(grid: Grid, key: Indices, groups: Float32, scale: Float32) -> Indices:
    """The neighbour j with the least Σ r·(s·q_j − x)², the first of equal ones, for each group.

    Args:
        grid: its points q are the odd numbers 2 · code + 1.
        key: (groups,) lattice points off the grid.
        groups: float32 (groups, 2 · width), a group's x and beside it the square roots r of its weights.
        scale: float32 (groups,), s.

    Returns:
        Grid indices (groups,), NONE where every distance is NaN or at least float32's largest number.

    Source: ggml/src/ggml-quants.c, iq2_find_best_neighbour and iq3_find_best_neighbour.
    """
    nearest = np.empty(len(key), np.intp)
    odd = 2 * grid.points.T.astype(np.float32) + 1  # (width, size)
    count = grid.count.take(key)
    order = np.argsort(count.astype(np.uint16), kind="stable")  # of 16-bit numbers: a radix sort
    count, first = count.take(order), grid.first.take(key.take(order))
    for some in _batches(count):
        batch = order[some]
        slot = np.minimum(np.arange(count[some][-1])[:, None], count[some] - 1)
        candidates = grid.neighbours.take(first[some] + slot)  # (slots, batch)
        x, roots = np.split(np.ascontiguousarray(groups.take(batch, axis=0).T), 2)  # (width, batch)
        distance = _distances(odd, candidates, x, roots, scale.take(batch))
        least = np.fmin.reduce(distance, axis=0)  # fmin passes over NaN, as `<` does
        winner = candidates[(distance == least).argmax(axis=0), np.arange(len(batch))]
        nearest[batch] = np.where(least < _LARGEST, winner, NONE)
    return nearest


def _distances(odd: Float32, candidates: Indices, x: Float32, roots: Float32, scale: Float32) -> Float32:
    """Σ (r·Δ)·Δ with Δ = s·q − x, one position after the other: (slots, groups)."""
    total = np.zeros(candidates.shape, np.float32)
    delta, term = np.empty_like(total), np.empty_like(total)
    for q, xi, root in zip(odd, x, roots, strict=True):
        q.take(candidates, out=delta, mode="clip")  # no index is out of range; "raise" would buffer the output
        delta *= scale
        delta -= xi
        np.multiply(root, delta, out=term)
        term *= delta
        total += term
    return total


def _batches(count: Indices) -> Iterator[slice]:
    """Runs of groups, their lists ascending in length, with at most _BATCH slots when padded to the longest."""
    start = 0
    while start < len(count):
        stop = min(len(count), start + _BATCH // int(count[start]))
        stop = min(stop, start + max(1, _BATCH // int(count[stop - 1])))
        yield slice(start, stop)
        start = stop
