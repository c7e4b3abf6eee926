"""What `refquant quantize` prints: the plan, summed up by type, and what an importance matrix did not know."""

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from refquant.cli.console import print_json, print_table

if TYPE_CHECKING:
    from refquant.checkpoints.imatrix import Imatrix
    from refquant.conversion import Plan, PlannedTensor
    from refquant.conversion.coverage import Coverage

_FEW: Final = 3


def show(args: argparse.Namespace, plan: "Plan", imatrix: "Imatrix | None", lost: tuple[str, ...]) -> None:
    """Print the document, or the tables."""
    from refquant.conversion.coverage import coverage

    covered = coverage(plan, imatrix) if imatrix else None
    if args.json:
        print_json(_document(args, plan, covered, lost))
        return
    if args.dry_run:
        _print_tensors(plan)
        print()
    caption = "\n".join(line for line in [*_remarks(args, plan, covered), *map("lost: {}".format, lost)] if line)
    print_table(["type", ">tensors", ">weights", ">bytes", ">bits/w"], _by_type(plan), caption=caption)


def _document(
    args: argparse.Namespace, plan: "Plan", covered: "Coverage | None", lost: tuple[str, ...]
) -> dict[str, object]:
    return {
        "input": args.input,
        "output": None if args.dry_run else args.output,
        "file_type": plan.file_type.name,
        "weights": plan.size,
        "bytes": plan.nbytes,
        "input_bytes": plan.old_nbytes,
        "bits_per_weight": plan.bits_per_weight,
        "fallbacks": len(plan.fallbacks),
        "lost": list(lost),
        "requantized": [tensor.name for tensor in _requantized(plan)],
        "needing_imatrix": [tensor.name for tensor in plan.needing_imatrix],
        "imatrix": asdict(covered) if covered else None,
        "tensors": [
            {
                "name": tensor.name,
                "source": tensor.source,
                "shape": list(tensor.shape),
                "from": tensor.old,
                "to": tensor.new,
                "instead_of": tensor.instead_of,
                "bytes": tensor.nbytes,
                "why": tensor.why,
            }
            for tensor in plan.tensors
        ],
    }


def _print_tensors(plan: "Plan") -> None:
    print_table(
        ["tensor", "shape", "from", "to", ">bytes", "why"],
        [
            [
                tensor.name,
                " × ".join(map(str, tensor.shape)),
                tensor.old,
                tensor.new,
                f"{tensor.nbytes:,}",
                f"{tensor.why}; rows hold no whole {tensor.instead_of} blocks" if tensor.instead_of else tensor.why,
            ]
            for tensor in plan.tensors
        ],
    )


def _by_type(plan: "Plan") -> list[list[str]]:
    groups: dict[str, list[PlannedTensor]] = {}
    for tensor in plan.tensors:
        groups.setdefault(tensor.new, []).append(tensor)
    rows = sorted(groups.items(), key=lambda item: -sum(tensor.nbytes for tensor in item[1]))
    return [_summary(kind, tensors) for kind, tensors in [*rows, ("total", list(plan.tensors))]]


def _summary(label: str, tensors: "list[PlannedTensor]") -> list[str]:
    weights, nbytes = sum(tensor.size for tensor in tensors), sum(tensor.nbytes for tensor in tensors)
    return [label, f"{len(tensors):,}", f"{weights:,}", f"{nbytes:,}", f"{nbytes * 8 / weights:.3f}"]


def _remarks(args: argparse.Namespace, plan: "Plan", covered: "Coverage | None") -> Iterable[str]:
    """Everything that a user should not have to find out alone."""
    yield f"{plan.file_type.name}, from {plan.old_nbytes:,} bytes" + ("" if args.dry_run else f", in {args.output}")
    if plan.fallbacks:
        weights = sum(tensor.size for tensor in plan.fallbacks)
        yield (
            f"{len(plan.fallbacks):,} of {len(plan.tensors):,} tensors, {weights / plan.size:.1%} of the weights, have "
            "another type than their rule says: rows that its blocks do not divide"
        )
    again = _requantized(plan)
    if again:
        allowed = "" if args.allow_requantize else ", which needs --allow-requantize"
        yield f"quantized before{allowed}: {_names(tensor.name for tensor in again)}"
    if plan.needing_imatrix and covered is None:
        yield f"no use without --imatrix: {_names(tensor.name for tensor in plan.needing_imatrix)}"
    if covered is None:
        return
    if covered.missing:
        yield f"no importance for {len(covered.missing):,} of {covered.tensors:,}: {_names(covered.missing)}"
    if covered.partial:
        parts = (f"{name} ({matrices - seen} of {matrices})" for name, seen, matrices in covered.partial)
        yield f"matrices that have seen nothing: {_names(parts)}"
    if covered.unused:
        yield f"entries of the importance matrix for no tensor that is quantized: {covered.unused:,}"


def _requantized(plan: "Plan") -> "list[PlannedTensor]":
    from refquant.checkpoints.ggml_types import BY_NAME

    return [tensor for tensor in plan.tensors if tensor.changes and BY_NAME[tensor.old].block_size > 1]


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_FEW]) + ("" if len(listed) <= _FEW else f" and {len(listed) - _FEW:,} more")
