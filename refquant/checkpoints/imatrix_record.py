"""Importance matrices: how large the inputs of each tensor's columns were (spec/imatrix.md).

For a matrix that is multiplied with x, the importance of a column is the mean of x² over the tokens that were seen.
`refquant.checkpoints.imatrix` reads and writes the files that hold it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refquant.arrays import Float32, Int64
from refquant.errors import RefquantError


@dataclass(frozen=True, eq=False)
class ImatrixEntry:
    """What was collected for one tensor.

    Attributes:
        sums: float32 (matrices, n), Σ x² of each column; one matrix, or as many as the tensor has experts.
        counts: int64 (matrices,), how many rows of x each matrix has seen.

    Raises:
        RefquantError: other dtypes or shapes, or a negative count.
    """

    sums: Float32
    counts: Int64

    def __post_init__(self) -> None:
        sums, counts = self.sums, self.counts
        if sums.dtype != np.float32 or counts.dtype != np.int64 or sums.ndim != 2 or counts.shape != sums.shape[:1]:
            raise RefquantError(
                f"imatrix entry: sums {sums.dtype} {sums.shape} and counts {counts.dtype} {counts.shape} given; "
                "they are float32 (matrices, n) and int64 (matrices,)"
            )
        if counts.size == 0 or counts.min() < 0:
            raise RefquantError(f"imatrix entry: counts {counts[:4].tolist()} given; one count ≥ 0 a matrix")

    @property
    def covered(self) -> int:
        """How many of the matrices have seen anything."""
        return int(np.count_nonzero(self.counts))

    @cached_property
    def importance(self) -> Float32:
        """float32 (matrices, n): sums / float32(count), rounded once; 1 for a matrix that has seen nothing."""
        seen = self.counts[:, None] > 0
        with np.errstate(all="ignore"):  # 0 / 0 where nothing was seen; a sum may be infinite, which quantizing refuses
            return np.where(seen, self.sums / self.counts[:, None].astype(np.float32), np.float32(1))


@dataclass(frozen=True, eq=False)
class Imatrix:
    """The importance matrix of a model.

    Attributes:
        entries: by the name of the tensor they weigh, in the order of their file.
        datasets: the names of the texts it was computed on, oldest first.
        chunk_count: how many chunks of text were seen.
        chunk_size: tokens in a chunk; 0 where counts are chunks instead of tokens, as in a legacy file.
    """

    entries: Mapping[str, ImatrixEntry]
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0

    def in_tokens(self, chunk_size: int) -> "Imatrix":
        """The same with counts of tokens: an imatrix that counts chunks, times the tokens of a chunk.

        Raises:
            RefquantError: it counts tokens already, or `chunk_size` is not positive.
        """
        if self.chunk_size or chunk_size < 1:
            raise RefquantError(
                f"chunk_size {chunk_size} given for an imatrix in chunks of {self.chunk_size} tokens; a positive "
                "number, for one that was read from a legacy file"
            )
        entries = {
            name: ImatrixEntry(entry.sums * np.float32(chunk_size), entry.counts * chunk_size)
            for name, entry in self.entries.items()
        }
        return Imatrix(entries, self.datasets, self.chunk_count, chunk_size)

    def selected(self, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> "Imatrix":
        """The entries whose name contains any of `include` (none given: all) and none of `exclude`."""
        kept = {
            name: entry
            for name, entry in self.entries.items()
            if not any(part in name for part in exclude) and (not include or any(part in name for part in include))
        }
        return Imatrix(kept, self.datasets, self.chunk_count, self.chunk_size)
