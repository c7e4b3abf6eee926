"""What an importance matrix knows of the tensors that are to be quantized."""

from dataclasses import dataclass

from refquant.checkpoints.imatrix_record import Imatrix
from refquant.conversion.plan import Plan
from refquant.conversion.rules import FLOATS


@dataclass(frozen=True)
class Coverage:
    """How far an importance matrix covers a conversion.

    Attributes:
        tensors: how many tensors are quantized.
        missing: names of those that it has no entry for.
        partial: name, matrices seen and matrices of those of which some experts, or all, have seen nothing.
        unused: how many entries belong to no tensor that is quantized.
    """

    tensors: int
    missing: tuple[str, ...]
    partial: tuple[tuple[str, int, int], ...]
    unused: int


def coverage(plan: Plan, imatrix: Imatrix) -> Coverage:
    """Compare the tensors that a plan quantizes with the entries of an importance matrix."""
    names = [tensor.source for tensor in plan.tensors if tensor.changes and tensor.new not in FLOATS]
    known = {name: imatrix.entries[name] for name in names if name in imatrix.entries}
    partial = tuple(
        (name, entry.covered, len(entry.counts)) for name, entry in known.items() if entry.covered < len(entry.counts)
    )
    missing = tuple(name for name in names if name not in known)
    return Coverage(len(names), missing, partial, len(imatrix.entries) - len(known))
