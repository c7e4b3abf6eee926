"""`refquant imatrix`: an importance matrix from a text."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refquant.cli.measured_text import read_ids, read_text
from refquant.errors import RefquantError

if TYPE_CHECKING:
    from refquant.checkpoints.imatrix import Imatrix

DESCRIPTION = """\
Run a text through a model and write its importance matrix: for every matrix in the blocks, how large the inputs of
each column were. `refquant quantize --imatrix` and llama-quantize read it; some types cannot be made without one.

The text is cut into whole windows as llama-imatrix does: some hundred windows of the kind of text that the model
will see are usual.
"""

EPILOG = """\
examples:
  refquant imatrix model.gguf --text calibration.txt
  refquant imatrix MODEL --text calibration.txt --limit 51200 --output small.gguf
  refquant imatrix model.gguf --text calibration.txt --output imatrix.dat
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "imatrix",
        help="compute an importance matrix from a text",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, or a Hugging Face folder with safetensors weights")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, metavar="FILE", help="UTF-8 text, taken as it is")
    source.add_argument(
        "--ids", type=Path, metavar="FILE", help="token ids: .json, .npy, or numbers between white space"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("imatrix.gguf"),
        metavar="FILE",
        help="a GGUF file, or llama.cpp's older kind where the name ends in .dat (default: imatrix.gguf)",
    )
    parser.add_argument("--window", type=int, metavar="N", help="tokens seen together (default: 512)")
    parser.add_argument("--limit", type=int, metavar="N", help="see the first N tokens alone, BOS not counted")
    parser.add_argument(
        "--bos",
        metavar="auto|always|never",
        default="auto",
        help="BOS before the text and in place of each window's first token; auto: where the tokenizer adds one "
        "(default: auto)",
    )
    parser.add_argument(
        "--process-output", action="store_true", help="collect for the head (output.weight) too, where it has one"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compute, write and report."""
    from refquant.calibration import importance_matrix
    from refquant.checkpoints.imatrix import write_imatrix
    from refquant.cli.console import print_json, progress
    from refquant.models import load_model

    if not args.output.parent.is_dir() or args.output.is_dir():  # better known before the model runs than after
        raise RefquantError(f"--output {args.output}: name a file in a folder that is there")
    text = read_ids(args.ids) if args.ids else read_text(args.text)
    model = load_model(args.model)
    with progress() as bar:
        task = bar.add_task("tokens", total=None)
        imatrix = importance_matrix(
            model,
            text,
            window=args.window,
            bos=args.bos,
            limit=args.limit,
            head=args.process_output,
            dataset=str(args.text or args.ids),
            on_tokens=lambda done, total: bar.update(task, completed=done, total=total),
        )
    write_imatrix(args.output, imatrix)
    report = _report(args, imatrix)
    if args.json:
        print_json(report)
    else:
        for name, value in report.items():
            print(f"{name.replace('_', ' '):<14}  {value}")
    return 0


def _report(args: argparse.Namespace, imatrix: "Imatrix") -> dict[str, object]:
    return {
        "model": args.model,
        "text": str(args.text or args.ids),
        "output": str(args.output),
        "tensors": len(imatrix.entries),
        "windows": imatrix.chunk_count,
        "window": imatrix.chunk_size,
        "tokens": imatrix.chunk_count * imatrix.chunk_size,
    }
