"""ggml's searches for a scale and a minimum, and for the scale of such scales (spec/ggml_k.md, "Searches").

The layout is `ggml_search`'s: one (sub-)block a column, (positions, columns).
"""

from typing import NamedTuple

import numpy as np

from refquant.arrays import Float32, Int32, UInt8
from refquant.formats.ggml_search import ZERO_BELOW, sum_from_first, sum_positions
from refquant.formats.rounding import nearest_int

_ZERO = np.float32(0)
_ONE = np.float32(1)
_TENTH = np.float32(0.1)
_EXACT_RINT = np.float32(4194303)  # nearest_int is rint up to here
_DESCENTS = 5


class Trials(NamedTuple):
    """The steps that a search tries: the span divided by top + first + step · k for k = 0 … last.

    Attributes:
        first: the smallest addition to the top code.
        step: from one trial to the next.
        last: the number of the last one, counted from 0.
    """

    first: float
    step: float
    last: int

    def numerators(self, top: int) -> list[np.float32]:
        """What the span is divided into, in float32: (first + step · k) + top."""
        first, step = np.float32(self.first), np.float32(self.step)
        return [first + step * np.float32(k) + np.float32(top) for k in range(self.last + 1)]


WEIGHTED_TRIALS = Trials(-0.9, 0.05, 36)  # of every type that takes an importance matrix here


def minimum_search(
    x: Float32, weights: Float32, top: int, trials: Trials, loss: np.ufunc = np.square
) -> tuple[Float32, Float32, UInt8]:
    """A scale, a minimum ≤ 0 and codes with x ≈ scale · code + minimum, by trying steps.

    For each trial's codes, scale and minimum come from weighted linear regression, and are kept where their error is
    smaller than any before. **The next trial measures its span from the minimum that is kept**, not from the data's.

    Args:
        x: finite float32 (positions, columns).
        weights: float32 ≥ 0 of the same shape.
        top: codes are 0 … top.
        trials: the steps to try after the first, which divides the span by top.
        loss: np.square, or np.abs, of a difference; the error is Σ w · loss.

    Returns:
        scale: float32 (columns,); 0 where all weights are equal and not positive.
        minimum: float32 (columns,). ggml returns it negated, and stores it so in K types; q4_1 and q5_1 negate again.
            Its zero has the sign that C computes.
        codes: uint8 of x's shape.

    Source: ggml/src/ggml-quants.c, make_qkx2_quants and (with weights) make_qkx3_quants, which are one.
    """
    least, most = _range(x)  # M1
    # Where low is most, every level is 0 · ∞, which rounds to 0: the scale is 1 / ∞, and no trial has a determinant.
    low = np.where(least > 0, _ZERO, least)
    sum_w, sum_x = sum_from_first(weights), sum_from_first(weights * x)
    levels, scratch = np.empty_like(x), np.empty_like(x)
    terms = np.empty((len(x), 3, x.shape[1]), np.float32)

    best_inverse, best_origin = np.float32(top) / (most - low), low.copy()  # M2
    scale = _ONE / best_inverse
    _round(x, (least, most), low, best_inverse, top, levels)
    best = _error(x, weights, levels, scale, low, loss, scratch)
    for numerator in trials.numerators(top):  # M3
        inverse = numerator / (most - low)
        _round(x, (least, most), low, inverse, top, levels)
        np.multiply(weights, levels, out=terms[:, 0])
        np.multiply(terms[:, 0], levels, out=terms[:, 1])
        np.multiply(terms[:, 0], x, out=terms[:, 2])
        sum_l, sum_ll, sum_xl = sum_positions(terms)
        determinant = sum_w * sum_ll - sum_l * sum_l
        # M4
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_low = (sum_ll * sum_x - sum_l * sum_xl) / determinant
        above = new_low > 0
        np.copyto(new_low, _ZERO, where=above)
        np.copyto(new_scale, sum_xl / sum_ll, where=above)
        error = _error(x, weights, levels, new_scale, new_low, loss, scratch)
        better = (determinant > 0) & (error < best)
        np.copyto(best_inverse, inverse, where=better)
        np.copyto(best_origin, low, where=better)
        np.copyto(best, error, where=better)
        np.copyto(scale, new_scale, where=better)
        np.copyto(low, new_low, where=better)
    _round(x, (least, most), best_origin, best_inverse, top, levels)
    return scale, low, levels.astype(np.uint8)


def _range(x: Float32) -> tuple[Float32, Float32]:
    """The least and the largest number of each column; of zeros of either sign the first."""
    least, most = x[0].copy(), x[0].copy()
    for row in x[1:]:
        np.copyto(least, row, where=row < least)
        np.copyto(most, row, where=row > most)
    return least, most


def _round(x: Float32, ends: tuple[Float32, Float32], low: Float32, inverse: Float32, top: int, out: Float32) -> None:
    """inverse · (x − low) by nearest_int, within 0 … top. `ends` are the least and the largest x of each column."""
    np.subtract(x, low, out=out)
    out *= inverse
    far = np.zeros(x.shape[1], np.bool_)
    for end in ends:  # the product is monotonic in x, so these bound it; a NaN is far too
        far |= ~(np.abs(inverse * (end - low)) <= _EXACT_RINT)
    if far.any():
        out[:, far] = nearest_int(out[:, far])
    np.rint(out, out=out)
    np.clip(out, _ZERO, np.float32(top), out=out)


def _error(
    x: Float32, weights: Float32, levels: Float32, scale: Float32, low: Float32, loss: np.ufunc, scratch: Float32
) -> Float32:
    """Σ w · loss(scale · level + low − x) of each column."""
    np.multiply(levels, scale, out=scratch)
    scratch += low
    scratch -= x
    loss(scratch, out=scratch)
    scratch *= weights
    return sum_positions(scratch)


def scale_search(x: Float32, weights: Float32, top: int) -> tuple[Float32, UInt8]:
    """A scale and codes with x ≈ scale · code, for numbers that are not negative but for rounding errors.

    Nine steps are compared by their weighted error; from the codes of the best, each position in turn takes the code
    that is best for the others' scale, if that explains more of Σ w·x²; five rounds at most.

    Args:
        x: float32 (positions, columns), the scales or negated minima of a super-block's sub-blocks.
        weights: float32 ≥ 0 of the same shape.
        top: codes are meant to be 0 … top. **A negative one is stored modulo 256**, as C's uint8_t keeps it.

    Returns:
        The scales, float32 (columns,), and the codes, uint8 of x's shape. A column whose largest number is below
        1e-15 gets scale 0 and codes 0.

    Source: ggml/src/ggml-quants.c, make_qp_quants.
    """
    most = np.zeros(x.shape[1], np.float32)
    for row in x:
        most = np.where(most > row, most, row)  # C's MAX: a NaN is forgotten with the next number
    empty = most < ZERO_BELOW  # P1
    np.copyto(most, _ONE, where=empty)
    inverse = np.float32(top) / most  # P2
    best = _squares(x, weights, nearest_int(inverse * x) & 255, _ONE / inverse)
    for trial in (-4, -3, -2, -1, 1, 2, 3, 4):  # P3
        new = (_TENTH * np.float32(trial) + np.float32(top)) / most
        error = _squares(x, weights, np.minimum(nearest_int(new * x), top), _ONE / new)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(inverse, new, where=better)
    levels = np.minimum(nearest_int(inverse * x), top)  # P4
    weighted = weights * levels.astype(np.float32)
    xl = sum_positions(weights * x * levels.astype(np.float32))
    ll = sum_positions(weighted * levels.astype(np.float32))
    codes = levels & 255
    for _ in range(_DESCENTS):  # P5
        if not _descend(x, weights, codes, xl, ll, top):
            break
    codes[:, empty] = 0
    scale = np.where((ll > 0) & ~empty, xl / ll, _ZERO)
    return scale, codes.astype(np.uint8)


def _squares(x: Float32, weights: Float32, levels: Int32, scale: Float32) -> Float32:
    difference = x - scale * levels.astype(np.float32)
    return sum_positions(weights * difference * difference)


def _descend(x: Float32, weights: Float32, codes: Int32, xl: Float32, ll: Float32, top: int) -> bool:
    """One round over the positions, which changes codes, Σ w·x·l and Σ w·l² in place; tells whether any moved."""
    moved = False
    for xi, wi, code in zip(x, weights, codes, strict=True):
        level = code.astype(np.float32)
        wx = wi * xi
        xl_others = xl - wx * level
        ll_others = ll - wi * level * level
        new = np.minimum(nearest_int(xi * ll_others / xl_others), top)
        new_level = new.astype(np.float32)
        xl_new = xl_others + wx * new_level
        ll_new = ll_others + wi * new_level * new_level
        better = (xl_others > 0) & (ll_others > 0) & (new != code)
        better &= xl_new * xl_new * ll > xl * xl * ll_new
        np.copyto(code, new & 255, where=better)
        np.copyto(xl, xl_new, where=better)
        np.copyto(ll, ll_new, where=better)
        moved |= bool(better.any())
    return moved
