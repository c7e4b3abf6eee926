"""The search for a scale whose rounded groups lie on a grid, shared by the IQ2 and IQ3 types (spec/ggml_iq.md).

All sub-blocks are searched at once: arrays hold a sub-block a column, its weights in order along the first axis, and
ggml's branches are masks over columns.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32, Int32
from refquant.formats.ggml_grid import Grid, Indices
from refquant.formats.ggml_nearest import NONE, nearest_neighbours
from refquant.formats.ggml_search import sum_positions
from refquant.formats.rounding import nearest_int

Mask = npt.NDArray[np.bool_]

_HALF = np.float32(0.5)
_ONE = np.float32(1)


@dataclass(frozen=True, eq=False)
class Choice:
    """A scale and grid points for each sub-block.

    Attributes:
        scale: float32 (columns,).
        index: the grid index of every group, (groups, columns).
        explained: the sub-blocks for which some target explained anything, (columns,).
        on_grid: which groups were rounded to a grid point at once, (groups, columns); all where nothing was explained.
        lost: the sub-blocks for which some group had no nearest grid point, (columns,); ggml aborts.
    """

    scale: Float32
    index: Indices
    explained: Mask
    on_grid: Mask
    lost: Mask


def targets(levels: int, reach: int, step: float) -> Float32:
    """What a search tries to map the largest magnitude to: 2 · levels − 1 + k · step for k = −reach … reach."""
    return np.float32(2 * levels - 1) + np.arange(-reach, reach + 1).astype(np.float32) * np.float32(step)


class GridSearch:
    """A grid's search over the sub-blocks of one call.

    Args:
        grid: where the groups shall lie.
        x: float32 (positions, columns), magnitudes; negative where a sign was flipped to make a number of signs even.
        weights: float32 of the same shape.
    """

    def __init__(self, grid: Grid, x: Float32, weights: Float32) -> None:
        self._grid, self._x, self._weights = grid, x, weights
        self._weighted = weights * x
        self._odd = 2 * grid.points.T.astype(np.float32) + 1  # (width, size)
        self._groups = np.concatenate([self._by_group(x), self._by_group(np.sqrt(weights))], axis=1)

    def best_of(self, targets: Float32, span: Float32, scale: Float32) -> Choice:
        """The target whose best scale explains most of Σ w·x²; the first of equal ones.

        Args:
            targets: the numbers that `span` is mapped to, in the order they are tried.
            span: float32 (columns,).
            scale: what stands, with all groups at grid point 0, where no target explains anything.
        """
        groups, columns = len(self._x) // self._grid.width, self._x.shape[1]
        scale = scale.copy()
        best = np.zeros(columns, np.float32)
        index = np.zeros((groups, columns), np.intp)
        explained = np.zeros(columns, np.bool_)
        on_grid = np.ones((groups, columns), np.bool_)
        lost = np.zeros(columns, np.bool_)
        for target in targets:
            inverse = target / span  # T1
            tried, fits = self._rounded(inverse, _ONE / inverse)  # T2, T3
            lost |= (tried == NONE).any(axis=0)
            qx, qq = self._sums(tried)  # T4
            better = (qq > 0) & (qx * qx > best * qq)  # T5
            np.copyto(scale, qx / qq, where=better)
            np.copyto(best, scale * qx, where=better)
            np.copyto(index, tried, where=better)
            np.copyto(on_grid, fits, where=better)
            explained |= better
        return Choice(scale, index, explained, on_grid, lost)

    def refined(self, choice: Choice, again: Mask) -> Choice:
        """Round some groups, (groups, columns), once more for the scale that was chosen, and fit the scale to all."""
        index, _ = self._rounded(_ONE / choice.scale, choice.scale, again)  # A1
        index = np.where(again, index, choice.index)
        qx, qq = self._sums(index)  # A2
        scale = np.where((qq > 0) & again.any(axis=0), qx / qq, choice.scale)
        lost = choice.lost | (index == NONE).any(axis=0)
        return replace(choice, scale=scale, index=index, lost=lost)

    def _rounded(self, inverse: Float32, scale: Float32, wanted: Mask | None = None) -> tuple[Indices, Mask]:
        """The grid index of each group's lattice point or else of its nearest neighbour, and where it is the former."""
        grid, columns = self._grid, self._x.shape[1]
        codes = _lattice_codes(self._x, inverse, grid.levels).reshape(-1, grid.width, columns)
        key = grid.key(codes.swapaxes(0, 1))  # (groups, columns)
        index = grid.index.take(key)
        on_grid = index >= 0
        off = np.flatnonzero(~on_grid if wanted is None else ~on_grid & wanted)
        index.reshape(-1)[off] = nearest_neighbours(
            grid, key.reshape(-1).take(off), self._groups.take(off, axis=0), scale.take(off % columns)
        )
        return index, on_grid

    def _sums(self, index: Indices) -> tuple[Float32, Float32]:
        """Σ (w·x)·q and Σ (w·q)·q over the positions of each column."""
        q = self._odd.take(index, axis=1)  # (width, groups, columns)
        q = q.swapaxes(0, 1).reshape(self._x.shape)  # (positions, columns)
        return sum_positions(self._weighted * q), sum_positions(self._weights * q * q)

    def _by_group(self, positions: Float32) -> Float32:
        """(positions, columns) to (groups · columns, width)."""
        width, columns = self._grid.width, positions.shape[1]
        return positions.reshape(-1, width, columns).swapaxes(1, 2).reshape(-1, width)


def _lattice_codes(x: Float32, inverse: Float32, levels: int) -> Int32:
    """(inverse · x − 1) / 2 to the nearest integer, within 0 … levels − 1."""
    return np.clip(nearest_int(_HALF * (inverse * x - _ONE)), 0, levels - 1)
