"""`refquant inspect`: what is in a checkpoint, without reading its weights."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refquant.checkpoints import Checkpoint, CheckpointTensor

DESCRIPTION = """\
List the tensors of a checkpoint with dtype, shape and size, its metadata, and a summary for each dtype.

PATH is a .safetensors file, a .safetensors.index.json, or a folder with one of them. Headers are read and checked;
the weights are not touched, so a large model takes no longer than a small one. A file that breaks the format is
refused with the tensor, the byte and the rule.
"""

EPILOG = """\
examples:
  refquant inspect model.safetensors
  refquant inspect Qwen3-8B/                             a folder, sharded or not
  refquant inspect Qwen3-8B/ --tensors '*.0.*'           one layer; the summary counts what matches
  refquant inspect Qwen3-8B/ --tensors '*embed*' --json  names, dtypes, shapes and bytes for a program
"""

LONGEST_VALUE: Final = 100


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "inspect",
        help="list a checkpoint's tensors, sizes and metadata",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="a .safetensors file, an index, or a folder")
    parser.add_argument(
        "--tensors",
        metavar="GLOB",
        default="*",
        help="only tensors whose whole name matches: * is any text, ? one character, [ab] a choice (default: *)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document, with metadata in full")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Open, list, add up."""
    from fnmatch import fnmatchcase

    from refquant.checkpoints import open as open_checkpoint
    from refquant.cli.console import print_json
    from refquant.errors import CheckpointError

    checkpoint = open_checkpoint(args.path)
    tensors = [tensor for name, tensor in checkpoint.items() if fnmatchcase(name, args.tensors)]
    if checkpoint and not tensors:
        raise CheckpointError(
            f"{args.path}: no tensor matches {args.tensors!r}; the names are like {next(iter(checkpoint))!r}"
        )
    if args.json:
        print_json(_document(checkpoint, tensors))
    else:
        _print(checkpoint, tensors)
    return 0


def _document(checkpoint: "Checkpoint", tensors: "list[CheckpointTensor]") -> dict[str, object]:
    from refquant.checkpoints.summary import summarize

    return {
        "path": str(checkpoint.path),
        "files": [path.name for path in checkpoint.files],
        "metadata": checkpoint.metadata,
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "file": t.path.name}
            for t in tensors
        ],
        "dtypes": [asdict(summary) for summary in summarize(tensors)],
        "total": {
            "tensors": len(tensors),
            "weights": sum(t.size for t in tensors),
            "bytes": sum(t.nbytes for t in tensors),
        },
    }


def _print(checkpoint: "Checkpoint", tensors: "list[CheckpointTensor]") -> None:
    from refquant.checkpoints.summary import summarize
    from refquant.cli.console import print_table

    sharded = len(checkpoint.files) > 1
    columns = ["tensor", "dtype", "shape", ">bytes", *(["file"] if sharded else [])]
    rows = [
        [
            t.name,
            t.dtype,
            " × ".join(map(str, t.shape)) or "scalar",
            f"{t.nbytes:,}",
            *([t.path.name] if sharded else []),
        ]
        for t in tensors
    ]
    print_table(columns, rows)
    if checkpoint.metadata:
        print()
        print_table(["metadata", "value"], [[key, _short(value)] for key, value in checkpoint.metadata.items()])
    summary = summarize(tensors)
    lines = [[s.dtype, f"{s.tensors:,}", f"{s.weights:,}", f"{s.bytes:,}", f"{s.share:.1%}"] for s in summary]
    sums = [sum(s.tensors for s in summary), sum(s.weights for s in summary), sum(s.bytes for s in summary)]
    total = ["total", *(f"{n:,}" for n in sums), ""]
    matched = "" if len(tensors) == len(checkpoint) else f"{len(tensors):,} of {len(checkpoint):,} tensors match. "
    files = f"{len(checkpoint.files):,} files. " if sharded else ""
    print()
    print_table(
        ["dtype", ">tensors", ">weights", ">bytes", ">share"],
        [*lines, total],
        caption=f"{matched}{files}share: of the bytes listed.",
    )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"
