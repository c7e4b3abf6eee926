"""`refquant inspect`: what is in a checkpoint, without reading its weights."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refquant.checkpoints import Checkpoint, CheckpointTensor

DESCRIPTION = """\
List the tensors of a checkpoint with dtype, shape and size, its metadata, and a summary for each dtype.

PATH is a .safetensors file, a .safetensors.index.json, a .gguf file (of a split one any part), or a folder with one of
them. Headers are read and checked; the weights are not touched, so a large model takes no longer than a small one. A
file that breaks the format is refused with the tensor, the byte and the rule.

Of a GGUF it also says which file type is declared, with the bits a weight of its main type, and what the tensors
really hold: a row that the main type's block does not divide has fallen back to another.
"""

EPILOG = """\
examples:
  refquant inspect model.safetensors
  refquant inspect Qwen3-8B/                             a folder, sharded or not
  refquant inspect Qwen3-8B/ --tensors '*.0.*'           one layer; the summary counts what matches
  refquant inspect Qwen3-8B/ --tensors '*embed*' --json  names, dtypes, shapes and bytes for a program
  refquant inspect model.Q4_K_M.gguf                     declared against actual

--json prints path, files, metadata, tensors (name, dtype, shape, bytes, file), dtypes (dtype, tensors, weights,
bits_per_weight, bytes, share of all bytes listed) and total. Of a GGUF each value of the metadata is an object with its
type, and its value, or of an array its length and its first 8 elements (infinities and NaN as strings); and gguf has
version, byte_order, alignment and file_type: number, name, guessed, base (the main type), nominal_bits, actual_bits (of
all matrices), base_share (of the weights of matrices), or null.
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
    from refquant.checkpoints.gguf import GgufCheckpoint
    from refquant.checkpoints.summary import summarize
    from refquant.cli import inspect_gguf

    beyond = inspect_gguf.document(checkpoint) if isinstance(checkpoint, GgufCheckpoint) else {}
    return {
        "path": str(checkpoint.path),
        "files": [path.name for path in checkpoint.files],
        "metadata": beyond.get("metadata", checkpoint.metadata),
        **({"gguf": beyond["gguf"]} if beyond else {}),
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
    from refquant.checkpoints.gguf import GgufCheckpoint
    from refquant.cli.console import print_table
    from refquant.cli.inspect_gguf import declaration

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
    _print_metadata(checkpoint)
    _print_summary(checkpoint, tensors)
    if isinstance(checkpoint, GgufCheckpoint):
        print("", *declaration(checkpoint), sep="\n")


def _print_metadata(checkpoint: "Checkpoint") -> None:
    from refquant.checkpoints.gguf import GgufCheckpoint
    from refquant.cli.console import print_table
    from refquant.cli.inspect_gguf import metadata_rows

    if not checkpoint.metadata:
        return
    print()
    if isinstance(checkpoint, GgufCheckpoint):
        rows = [[key, kind, _short(value)] for key, kind, value in metadata_rows(checkpoint)]
        print_table(["metadata", "type", "value"], rows)
    else:
        print_table(["metadata", "value"], [[key, _short(value)] for key, value in checkpoint.metadata.items()])


def _print_summary(checkpoint: "Checkpoint", tensors: "list[CheckpointTensor]") -> None:
    from refquant.checkpoints.summary import summarize
    from refquant.cli.console import print_table

    summary = summarize(tensors)
    lines = [
        [s.dtype, f"{s.tensors:,}", f"{s.weights:,}", _bits(s.bytes, s.weights), f"{s.bytes:,}", f"{s.share:.1%}"]
        for s in summary
    ]
    count, weights, size = len(tensors), sum(s.weights for s in summary), sum(s.bytes for s in summary)
    total = ["total", f"{count:,}", f"{weights:,}", _bits(size, weights), f"{size:,}", ""]
    matched = "" if len(tensors) == len(checkpoint) else f"{len(tensors):,} of {len(checkpoint):,} tensors match. "
    files = f"{len(checkpoint.files):,} files. " if len(checkpoint.files) > 1 else ""
    print()
    print_table(
        ["dtype", ">tensors", ">weights", ">bits each", ">bytes", ">share"],
        [*lines, total],
        caption=f"{matched}{files}share: of the bytes listed.",
    )


def _bits(size: int, weights: int) -> str:
    return f"{8 * size / weights:.4g}" if weights else ""


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text):,} characters)"
