"""ggml's searches for a scale whose codes run evenly around zero (spec/ggml_k.md, "Searches").

Every search runs over all (sub-)blocks at once: an array holds one of them a column, (positions, columns), so that
each step of ggml's loop over positions is one operation on a row, and sums keep ggml's order. What ggml decides for a
block by a branch is a mask over columns here. `ggml_search_minimum` has the searches with a minimum.

Callers silence NumPy's floating-point warnings: overflows and NaN are C's, and take the same way through the masks.
"""

import numpy as np

from refquant.arrays import Array, Float32, UInt8
from refquant.formats.rounding import nearest_int

ZERO_BELOW = np.float32(1e-15)  # a (sub-)block whose largest magnitude is smaller counts as zero

_ZERO = np.float32(0)
_MINUS_ZERO = np.float32(-0.0)  # neutral: −0 + x is x for every x
_ONE = np.float32(1)
_TENTH = np.float32(0.1)
_TRIALS = tuple(np.float32(k) for k in range(-9, 10) if k)
_DESCENTS = 5


def as_columns(w: Array, size: int) -> Array:
    """(..., n) cut into runs of `size` as columns, in the order of memory: (size, weights // size), contiguous."""
    return np.ascontiguousarray(w.reshape(-1, size).T)


def sum_positions(terms: Float32) -> Float32:
    """The sums over the first axis in float32, one position after the other from +0, as a loop in C adds them."""
    return _sum(terms, _ZERO)


def sum_from_first(terms: Float32) -> Float32:
    """The same, but from the first term, which keeps the sign of a sum of minus zeros."""
    return _sum(terms, _MINUS_ZERO)


def _sum(terms: Float32, start: np.float32) -> Float32:
    if terms.size > len(terms):
        # NumPy sums pairwise along the axis that is fastest in memory, and in turn along the others.
        sums: Float32 = np.add.reduce(np.ascontiguousarray(terms), axis=0, initial=start)
        return sums
    sums = np.full(terms.shape[1:], start)
    for row in terms:
        sums += row
    return sums


def signed_peak(x: Float32) -> Float32:
    """The first number of the largest magnitude in each column, with its sign; 0 for a column of zeros or NaN.

    Args:
        x: float32 (positions, columns).

    Returns:
        float32 (columns,).
    """
    largest = np.zeros(x.shape[1:], np.float32)
    peak = np.zeros_like(largest)
    for row, magnitude in zip(x, np.abs(x), strict=True):
        larger = magnitude > largest
        np.copyto(largest, magnitude, where=larger)
        np.copyto(peak, row, where=larger)
    return peak


def symmetric_search(x: Float32, weights: Float32, half: int) -> tuple[Float32, UInt8]:
    """A scale and codes with x ≈ scale · (code − half), by least weighted squares over nineteen steps.

    The first step maps the peak to −half; each other one is judged by how much of Σ w·x² its best scale explains.

    Args:
        x: float32 (positions, columns).
        weights: float32 ≥ 0 of the same shape; ggml's `rmse_type` 1 without weights is x².
        half: codes are 0 … 2 · half − 1.

    Returns:
        The scales, float32 (columns,), negative where the peak is positive, and the codes, uint8 of x's shape. A
        column whose peak is below 1e-15 gets scale 0 and codes 0 (not `half`).

    Source: ggml/src/ggml-quants.c, make_qx_quants with rmse_type 1.
    """
    peak = signed_peak(x)
    empty = np.abs(peak) < ZERO_BELOW  # S1
    np.copyto(peak, _ONE, where=empty)
    weighted = weights * x
    finite = np.where(np.isfinite(x), x, _ZERO)  # inverse · x is NaN for the others, and NaN rounds to 0
    levels = np.empty_like(x)
    terms = np.empty((len(x), 2, x.shape[1]), np.float32)

    def fit(inverse: Float32) -> tuple[Float32, Float32]:
        _round(finite, inverse, half, levels)
        np.multiply(weighted, levels, out=terms[:, 0])
        np.multiply(weights, levels, out=terms[:, 1])
        terms[:, 1] *= levels
        xl, ll = sum_positions(terms)  # Σ w·x·l, Σ w·l²
        return xl, ll

    best_inverse = np.float32(-half) / peak  # S2
    xl, ll = fit(best_inverse)
    scale = np.where(ll != 0, xl / ll, _ZERO)  # S3
    best = scale * xl
    for trial in _TRIALS:  # S4
        inverse = -(np.float32(half) + _TENTH * trial) / peak
        xl, ll = fit(inverse)
        better = (ll > 0) & (xl * xl > best * ll)
        np.copyto(scale, xl / ll, where=better)
        np.copyto(best, scale * xl, where=better)
        np.copyto(best_inverse, inverse, where=better)
    _round(finite, best_inverse, half, levels)
    levels += np.float32(half)
    codes = levels.astype(np.uint8)
    codes[:, empty] = 0
    scale[empty] = 0
    return scale, codes


def _round(x: Float32, inverse: Float32, half: int, out: Float32) -> None:
    """inverse · x to the nearest integer, ties to even, within −half … half − 1; never beyond half + 1 before that."""
    np.multiply(x, inverse, out=out)
    np.rint(out, out=out)
    np.clip(out, np.float32(-half), np.float32(half - 1), out=out)


def descent_search(x: Float32, half: int) -> tuple[Float32, UInt8]:
    """A scale and codes with x ≈ scale · (code − half), by moving one code at a time.

    Weights are x². From the codes that map the peak to −half, each position in turn takes the code that is best for
    the others' scale, if that explains more of Σ w·x²; five rounds at most.

    Args:
        x: float32 (positions, columns).
        half: codes are 0 … 2 · half − 1.

    Returns:
        As `symmetric_search`.

    Source: ggml/src/ggml-quants.c, make_q3_quants with do_rmse.
    """
    peak = signed_peak(x)
    empty = np.abs(peak) < ZERO_BELOW
    np.copyto(peak, _ONE, where=empty)
    levels = np.empty_like(x)
    _round(x, np.float32(-half) / peak, half, levels)
    weights = x * x
    xl = sum_positions(weights * x * levels)
    ll = sum_positions(weights * levels * levels)
    moving = np.arange(x.shape[1])
    for _ in range(_DESCENTS):  # D4
        now = levels[:, moving], xl[moving], ll[moving]
        moved = _descend(x[:, moving], weights[:, moving], *now, half)
        levels[:, moving], xl[moving], ll[moving] = now
        moving = moving[moved]  # a round without a move would only be repeated
        if not len(moving):
            break
    scale = np.where(ll > 0, xl / ll, _ZERO)
    levels += np.float32(half)
    codes = levels.astype(np.uint8)
    codes[:, empty] = 0
    scale[empty] = 0
    return scale, codes


def _descend(x: Float32, weights: Float32, levels: Float32, xl: Float32, ll: Float32, half: int) -> Array:
    """D3: one round, which changes levels, Σ w·x·l and Σ w·l² in place; tells which columns moved."""
    moved = np.zeros(x.shape[1], np.bool_)
    for xi, wi, level in zip(x, weights, levels, strict=True):
        wx = wi * xi
        xl_others = xl - wx * level
        ll_others = ll - wi * level * level
        nearest = nearest_int(xi * ll_others / xl_others)
        new = np.clip(nearest, -half, half - 1).astype(np.float32)
        xl_new = xl_others + wx * new
        ll_new = ll_others + wi * new * new
        better = (xl_others > 0) & (new != level) & (ll_new > 0)
        better &= xl_new * xl_new * ll > xl * xl * ll_new
        np.copyto(level, new, where=better)
        np.copyto(xl, xl_new, where=better)
        np.copyto(ll, ll_new, where=better)
        moved |= better
    return moved
