"""The grids of ggml's IQ1, IQ2 and IQ3 types, and the neighbours of every point beside them (spec/ggml_iq.md).

A group of weights is stored as the index of a grid point. An encoder rounds a group to a point of the lattice
{0 … levels − 1}^width first, and where that is not on the grid it chooses among the nearest points that are.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from refquant.arrays import UInt8
from refquant.formats.tables import load_words

GridName: TypeAlias = Literal["iq1", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"]
Indices: TypeAlias = npt.NDArray[np.intp]


class _Facts(NamedTuple):
    """What a grid is made of: codes a point, bits a code in its file, codes in use, and how far neighbours reach."""

    width: int
    bits: int
    levels: int
    shells: int  # neighbours are the grid points at this many of the smallest distances that occur


_FACTS: dict[GridName, _Facts] = {
    "iq1": _Facts(width=8, bits=2, levels=3, shells=3),
    "iq2_xxs": _Facts(width=8, bits=2, levels=3, shells=2),
    "iq2_xs": _Facts(width=8, bits=2, levels=3, shells=2),
    "iq2_s": _Facts(width=8, bits=2, levels=3, shells=1),
    "iq3_xxs": _Facts(width=4, bits=3, levels=8, shells=2),
    "iq3_s": _Facts(width=4, bits=3, levels=8, shells=3),
}


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid, and for every point of its lattice where it stands in the grid or which grid points are near.

    A lattice point is known by its key, a number whose digits in base `levels` are its codes, the first the lowest.

    Attributes:
        levels: codes are 0 … levels − 1.
        points: the codes of each grid point, (size, width).
        index: by key, the grid index of a lattice point, −1 where it is not on the grid.
        count: by key, how many neighbours it has, 0 on the grid.
        first: by key, where its neighbours begin.
        neighbours: grid indices: nearest first, and the lower index first among equally near ones.
    """

    levels: int
    points: UInt8
    index: Indices
    count: Indices
    first: Indices
    neighbours: Indices

    @property
    def width(self) -> int:
        """Weights in a group."""
        return len(self.points[0])

    def key(self, codes: npt.NDArray[np.integer]) -> Indices:
        """The keys of lattice points: codes of shape (width, …) to intp (…)."""
        key: Indices = codes[-1].astype(np.intp)
        for code in codes[-2::-1]:
            key *= self.levels
            key += code
        return key


@cache
def grid_points(name: GridName) -> UInt8:
    """The codes of every grid point, (size, width), read-only; its index is what a block stores."""
    facts = _FACTS[name]
    shifts = np.arange(facts.width, dtype=np.uint32) * np.uint32(facts.bits)
    points = (load_words(name)[:, None] >> shifts & np.uint32((1 << facts.bits) - 1)).astype(np.uint8)
    points.flags.writeable = False
    return points


@cache
def grid(name: GridName) -> Grid:
    """A grid with its neighbours, derived on the first call; arrays are read-only."""
    facts, points = _FACTS[name], grid_points(name)
    lattice = _lattice(facts.levels, facts.width)  # (keys, width)
    near = [_nearest(some, points, facts.shells) for some in np.array_split(lattice, 16)]
    count = np.concatenate([counts for counts, _ in near])
    index = np.full(len(lattice), -1, np.intp)
    index[points @ facts.levels ** np.arange(facts.width)] = np.arange(len(points))
    first = np.cumsum(count) - count
    arrays = index, count, first, np.concatenate([neighbours for _, neighbours in near])
    for array in arrays:
        array.flags.writeable = False
    return Grid(facts.levels, points, *arrays)


def _lattice(levels: int, width: int) -> UInt8:
    """All points by key, (levels ** width, width)."""
    return (np.arange(levels**width)[:, None] // levels ** np.arange(width) % levels).astype(np.uint8)


def _nearest(lattice: UInt8, points: UInt8, shells: int) -> tuple[Indices, Indices]:
    """How many neighbours each lattice point has, (lattice,), and all of them after one another, in their order."""
    distance = _distances(lattice, points)  # (lattice, size)
    off = distance.min(axis=1) > 0
    reach = distance.min(axis=1)
    for _ in range(shells - 1):
        reach = np.where(distance > reach[:, None], distance, np.uint8(255)).min(axis=1)
    of, neighbour = np.nonzero((distance <= reach[:, None]) & off[:, None])
    order = np.lexsort((neighbour, distance[of, neighbour], of))
    return np.bincount(of, minlength=len(lattice)), neighbour[order]


def _distances(lattice: UInt8, points: UInt8) -> UInt8:
    """Squared Euclidean distances between codes, (lattice, points); at most 4 · 7² = 196."""
    distance = np.zeros((len(lattice), len(points)), np.uint8)
    for a, b in zip(lattice.T, points.T, strict=True):
        step = a[:, None].astype(np.int8) - b.astype(np.int8)
        distance += (step * step).view(np.uint8)
    return distance
