"""What a set of tensors adds up to, dtype by dtype."""

from collections.abc import Iterable
from dataclasses import dataclass

from refquant.checkpoints.checkpoint import CheckpointTensor


@dataclass(frozen=True)
class DtypeSummary:
    """All tensors of one dtype.

    Attributes:
        dtype: as the file's format names it.
        tensors: how many there are.
        weights: their elements.
        bits_per_weight: bits of their bytes over their elements; 0 where there are none.
        bytes: their bytes in the file.
        share: of all bytes, 0 to 1; 0 where there are none.
    """

    dtype: str
    tensors: int
    weights: int
    bits_per_weight: float
    bytes: int
    share: float


def summarize(tensors: Iterable[CheckpointTensor]) -> list[DtypeSummary]:
    """One summary for each dtype, the one with the most bytes first."""
    by_dtype: dict[str, list[CheckpointTensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    total = sum(tensor.nbytes for group in by_dtype.values() for tensor in group)
    summaries = [_summary(dtype, group, total) for dtype, group in by_dtype.items()]
    return sorted(summaries, key=lambda summary: (-summary.bytes, summary.dtype))


def _summary(dtype: str, group: list[CheckpointTensor], total: int) -> DtypeSummary:
    weights, size = sum(tensor.size for tensor in group), sum(tensor.nbytes for tensor in group)
    return DtypeSummary(
        dtype=dtype,
        tensors=len(group),
        weights=weights,
        bits_per_weight=8 * size / weights if weights else 0.0,
        bytes=size,
        share=size / total if total else 0.0,
    )
