"""What a set of tensors adds up to, dtype by dtype."""

from collections.abc import Iterable
from dataclasses import dataclass

from refquant.checkpoints.checkpoint import CheckpointTensor


@dataclass(frozen=True)
class DtypeSummary:
    """All tensors of one dtype.

    Attributes:
        dtype: safetensors' name.
        tensors: how many there are.
        weights: their elements.
        bytes: their bytes in the file.
        share: of all bytes, 0 to 1; 0 where there are none.
    """

    dtype: str
    tensors: int
    weights: int
    bytes: int
    share: float


def summarize(tensors: Iterable[CheckpointTensor]) -> list[DtypeSummary]:
    """One summary for each dtype, the one with the most bytes first."""
    by_dtype: dict[str, list[CheckpointTensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    sizes = {dtype: sum(t.nbytes for t in group) for dtype, group in by_dtype.items()}
    total = sum(sizes.values())
    return [
        DtypeSummary(
            dtype, len(group), sum(t.size for t in group), sizes[dtype], sizes[dtype] / total if total else 0.0
        )
        for dtype, group in sorted(by_dtype.items(), key=lambda item: (-sizes[item[0]], item[0]))
    ]
