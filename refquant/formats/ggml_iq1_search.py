"""How iq1_s and iq1_m choose codes: three levels by an exhaustive search, then points of the grid (spec/ggml_iq1.md).

Arrays are (positions of a run, runs): a loop over positions or over splits runs along memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml_grid import Grid, Indices

Bools: TypeAlias = npt.NDArray[np.bool_]

# What the codes 0, 1, 2 stand for, times a scale: row 0 where the shift is up, row 1 where it is down.
LEVELS = np.array([[-0.875, 0.125, 1.125], [-1.125, -0.125, 0.875]], np.float32)


class Split(NamedTuple):
    """The best three-level code of each run, before the grid.

    Attributes:
        codes: 0, 1 or 2, (positions, runs).
        scale: (runs,), ≥ 0 where it was found.
        shift: the number of the combination of shifts.
        found: whether any split has a weight; what the others hold means nothing.
    """

    codes: UInt8
    scale: Float32
    shift: Indices
    found: Bools


class Snapped(NamedTuple):
    """Grid points for each run.

    Attributes:
        point: grid indices, (groups a run, runs).
        scale: fitted anew where a group was moved onto the grid.
        lost: whether the error of every neighbour overflows: ggml aborts there.
    """

    point: Indices
    scale: Float32
    lost: Bools


def one_shift(x: Float32, weight: Float32) -> Split:
    """S1 … S4 of the page: all splits of the sorted run, with both shifts (0 up, 1 down)."""
    order, (sumx,), (sumw,) = _prefix_sums(x, weight, np.ones((1, 1), np.bool_))
    low, middle, high = LEVELS.T[:, :, None, None]  # (2, 1, 1) each
    low_x, high_x = sumx * low, (sumx[-1] - sumx) * high  # (2, positions + 1, runs)
    low_2, high_2 = sumw * low * low, (sumw[-1] - sumw) * high * high
    middle = middle[:, :, 0]
    best = _Best.of(x.shape[1])
    for number, (i, j) in enumerate(_splits(len(x))):
        qx = low_x[:, i] + (sumx[j] - sumx[i]) * middle + high_x[:, j]  # (2, runs)
        q2 = low_2[:, i] + (sumw[j] - sumw[i]) * middle * middle + high_2[:, j]
        best.offer(qx, q2, 2 * number)
    return _split(best, order, 2)


def two_shifts(x: Float32, weight: Float32) -> Split:
    """M1 … M4 of the page: all splits, with both shifts in either half of the run (0 ++, 1 +−, 2 −+, 3 −−)."""
    halves = np.arange(len(x))[:, None] // (len(x) // 2) == np.arange(2)[:, None, None]  # (2, positions, 1)
    order, sumx, sumw = _prefix_sums(x, weight, halves)
    low, middle, high = LEVELS.T[:, :, None]  # (2, 1) each
    total_x = sumx[:, None, -1] * high  # (halves, shifts, runs)
    total_2 = sumw[:, None, -1] * high * high
    first, second = low * low - middle * middle, middle * middle - high * high
    first_2, second_2 = sumw[:, :, None] * first, sumw[:, :, None] * second  # (halves, positions + 1, shifts, runs)
    best = _Best.of(x.shape[1])
    for number, (i, j) in enumerate(_splits(len(x))):
        qx = total_x - (sumx[:, i] + sumx[:, j])[:, None]  # (halves, shifts, runs)
        q2 = total_2 + first_2[:, i] + second_2[:, j]
        both_x, both_2 = (q[0][:, None] + q[1] for q in (qx, q2))  # (shifts, shifts, runs)
        best.offer(both_x.reshape(4, -1), both_2.reshape(4, -1), 4 * number)
    return _split(best, order, 4)


def snap(x: Float32, weight: Float32, split: Split, down: Bools, grid: Grid) -> Snapped:
    """G1 … G3 of the page: every group of eight on the grid, `down` (groups, runs) telling its shift."""
    groups = len(x) // 8
    codes = split.codes.reshape(groups, 8, -1).swapaxes(0, 1)  # (8, groups, runs)
    key = grid.key(codes)
    point = grid.index[key]
    off = point < 0
    lost = np.zeros_like(off)
    values, weights = (a.reshape(groups, 8, -1).swapaxes(0, 1)[:, off] for a in (x, weight))  # (8, off the grid)
    levels = LEVELS[down[off].astype(np.intp)].T  # (3, off the grid)
    scale = np.broadcast_to(split.scale, off.shape)[off]
    point[off], lost[off] = _nearest_neighbour(values, weights, scale * levels, key[off], grid)
    qx, q2 = fit(x, weight, point, LEVELS[down.astype(np.intp)], grid)
    anew = off.any(axis=0) & (qx > 0) & (q2 > 0)
    return Snapped(point, np.where(anew, qx / q2, split.scale), np.logical_or.reduce(lost, axis=0))


def fit(x: Float32, weight: Float32, point: Indices, levels: Float32, grid: Grid) -> tuple[Float32, Float32]:
    """Σ w·q·x and Σ w·q² of each run, position by position, with q among `levels`, (groups, runs, 3)."""
    qx, q2 = np.zeros((2, x.shape[1]), np.float32)
    for position, (column, column_weight) in enumerate(zip(x, weight, strict=True)):
        group, place = divmod(position, 8)
        codes = grid.points[point[group], place].astype(np.intp)
        q = np.take_along_axis(levels[group], codes[:, None], axis=1)[:, 0]
        wq = column_weight * q
        qx += wq * column
        q2 += wq * q
    return qx, q2


@dataclass
class _Best:
    """The best of the candidates offered so far, by Σwqx² / Σwq², each as (runs,)."""

    score: Float32
    scale: Float32
    number: Indices

    @classmethod
    def of(cls, runs: int) -> "_Best":
        worst = np.full(runs, np.finfo(np.float32).min)
        return cls(worst, np.zeros(runs, np.float32), np.full(runs, -1, np.intp))

    def offer(self, qx: Float32, q2: Float32, number: int) -> None:
        """Candidates `number`, `number` + 1 … in turn: (candidates, runs)."""
        scales, squares, valid = qx / q2, qx * qx, q2 > 0
        scores = scales * qx
        for k in range(len(qx)):
            better = (squares[k] > self.score * q2[k]) & valid[k]
            np.copyto(self.scale, scales[k], where=better)
            np.copyto(self.score, scores[k], where=better)
            np.copyto(self.number, number + k, where=better)


def _splits(size: int) -> Iterator[tuple[int, int]]:
    """Every (i, j): codes 0 below i, 1 from i on, 2 from j on."""
    return ((i, j) for i in range(size + 1) for j in range(i, size + 1))


def _prefix_sums(x: Float32, weight: Float32, parts: Bools) -> tuple[Indices, Float32, Float32]:
    """The order that sorts each run, equal weights as they stand, and the sums of w·x and w over its beginnings.

    Args:
        x, weight: (positions, runs).
        parts: (parts, positions, 1): the sums are taken over each part of the run alone.

    Returns:
        The order, (positions, runs), and both sums, (parts, positions + 1, runs).
    """
    order = np.ascontiguousarray(np.argsort(x.T, axis=1, kind="stable").T)

    def sums(terms: Float32) -> Float32:
        ordered = [np.take_along_axis(np.where(part, terms, np.float32(0)), order, axis=0) for part in parts]
        start = np.zeros((len(parts), 1, terms.shape[1]), np.float32)
        return np.add.accumulate(np.concatenate([start, np.stack(ordered)], axis=1), axis=1)

    return order, sums(weight * x), sums(weight)


def _split(best: _Best, order: Indices, shifts: int) -> Split:
    number, shift = np.divmod(best.number, shifts)
    ends = np.array(list(_splits(len(order))))[number]  # (runs, 2)
    place = np.arange(len(order))[:, None]
    ordered = (place >= ends[:, 0]).view(np.uint8) + (place >= ends[:, 1]).view(np.uint8)
    codes = np.empty_like(ordered)
    np.put_along_axis(codes, order, ordered, axis=0)
    turned = best.scale < 0  # S4: a negative scale turns codes and shifts over
    return Split(
        np.where(turned, np.uint8(2) - codes, codes),
        np.abs(best.scale),
        np.where(turned, shifts - 1 - shift, shift),
        best.number >= 0,
    )


def _nearest_neighbour(x: Float32, weight: Float32, values: Float32, key: Indices, grid: Grid) -> tuple[Indices, Bools]:
    """For groups off the grid, the neighbour of the smallest weighted squared error, the first of equal ones.

    Args:
        x, weight: (8, groups).
        values: what the codes 0, 1, 2 stand for, (3, groups).
        key: of each group's codes.

    Returns:
        Grid indices, and whether no neighbour's error is below the largest float32.
    """
    descending = np.argsort(-grid.count[key], kind="stable")
    count, first = grid.count[key[descending]], grid.first[key[descending]]
    difference = values - x[:, None]  # (8, 3, groups)
    cost: Float32 = (weight[:, None] * difference * difference)[..., descending].transpose(2, 0, 1)
    # A row a group: the 81 sums of its first four places, and the twelve terms of the others. A grid point has one
    # sum and four terms in it.
    table = np.concatenate([_sums_of_four(cost[:, :4]), cost[:, 4:].reshape(-1, 12)], axis=1)
    columns = np.vstack(
        [3 ** np.arange(4) @ grid.points[:, :4].T, 81 + 3 * np.arange(4)[:, None] + grid.points[:, 4:].T]
    )
    largest = np.finfo(np.float32).max
    error, nearest = np.full(len(key), largest), np.full(len(key), -1, np.intp)
    row = table.shape[1] * np.arange(len(key))
    for k in range(int(count.max(initial=0))):
        some = slice(np.searchsorted(-count, -k))  # the groups that have more than k neighbours
        candidate = grid.neighbours[first[some] + k]
        total = table.take(row[some] + columns[0].take(candidate))
        for column in columns[1:]:
            total += table.take(row[some] + column.take(candidate))
        better = total < error[some]
        np.copyto(error[some], total, where=better)
        np.copyto(nearest[some], candidate, where=better)
    index = np.empty_like(nearest)
    index[descending] = nearest
    return index, index < 0


def _sums_of_four(cost: Float32) -> Float32:
    """((c₀ + c₁) + c₂) + c₃ for all codes of the first four places, by their key: (groups, 4, 3) to (groups, 81)."""
    total = cost[:, 0]
    for place in range(1, 4):
        total = (total[:, None, :] + cost[:, place, :, None]).reshape(len(cost), 3 ** (place + 1))
    return total
