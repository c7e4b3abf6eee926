"""`refquant quantize`: a model as a GGUF file of a file type."""

import argparse
import os
from typing import TYPE_CHECKING, Final

from refquant.errors import RefquantError

if TYPE_CHECKING:
    from refquant.conversion import ImatrixSource, Options

DESCRIPTION = """\
Write a model as a GGUF file whose tensors have the types that a file type of llama.cpp gives them, with the bytes
that llama-quantize writes.

IN is a GGUF file of any types, any part of a split one, or a Hugging Face folder. A mix such as Q4_K_M gives more
bits to the tensors that need them; where the blocks of a type do not divide a tensor's rows, another type takes its
place. --dry-run shows, tensor by tensor, which rule chose what. The output appears when it is complete, not before.
"""

EPILOG = """\
file types, from few bits to many (an older alias, or llama.cpp's number, will do as well):
  Q1_0 · IQ1_S IQ1_M · TQ1_0 TQ2_0 · IQ2_XXS IQ2_XS IQ2_S IQ2_M · Q2_0 · Q2_K_S Q2_K
  IQ3_XXS IQ3_XS IQ3_S IQ3_M · Q3_K_S Q3_K_M Q3_K_L · IQ4_XS IQ4_NL · MXFP4_MOE
  Q4_0 Q4_1 Q4_K_S Q4_K_M · Q5_0 Q5_1 Q5_K_S Q5_K_M · Q6_K · Q8_0 · F16 BF16 F32 · COPY
IQ1_*, IQ2_*, IQ3_XXS, IQ3_XS and Q2_K_S need an importance matrix: refquant imatrix computes one.

examples:
  refquant quantize model-f16.gguf model.gguf --format Q4_K_M
  refquant quantize Qwen3-8B/ qwen3.gguf --format IQ4_XS --imatrix imatrix.gguf
  refquant quantize model-f16.gguf --format Q3_K_M --dry-run
  refquant quantize model-f16.gguf model.gguf --format Q4_K_M --tensor-type 'ffn_down=q6_k' --output-tensor-type q8_0
"""

MOST_THREADS: Final = 4


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "quantize",
        help="write a model as a GGUF file of a file type",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", help="a GGUF file or a Hugging Face folder")
    parser.add_argument("output", metavar="OUT", nargs="?", help="the file to write; needed but for --dry-run")
    parser.add_argument("--format", metavar="TYPE", required=True, help="the file type, such as Q4_K_M")
    parser.add_argument("--dry-run", action="store_true", help="show what would be written, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        default=min(MOST_THREADS, os.cpu_count() or 1),
        help="rows encoded at a time; the output does not depend on it (default: %(default)s)",
    )
    _add_imatrix_arguments(parser)
    _add_type_arguments(parser)
    _add_model_arguments(parser)
    parser.set_defaults(run=run)


def _add_imatrix_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("importance matrix")
    group.add_argument("--imatrix", metavar="FILE", help="weigh the columns of each tensor by FILE, of either kind")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--include-weights",
        metavar="PART",
        action="append",
        default=[],
        help="use it for tensors whose name contains PART; may be repeated (default: all)",
    )
    chosen.add_argument(
        "--exclude-weights",
        metavar="PART",
        action="append",
        default=[],
        help="do not use it for tensors whose name contains PART; may be repeated",
    )


def _add_type_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("types of single tensors")
    group.add_argument("--pure", action="store_true", help="no mix: every tensor gets the file type's base")
    group.add_argument(
        "--tensor-type",
        metavar="REGEX=TYPE",
        action="append",
        default=[],
        type=lambda text: (False, text),
        dest="tensor_types",
        help="TYPE for tensors whose name holds a match of REGEX, the first that matches; may be repeated",
    )
    group.add_argument(
        "--tensor-type-file",
        metavar="FILE",
        action="append",
        type=lambda path: (True, path),
        dest="tensor_types",
        help="as many REGEX=TYPE as FILE holds, between white space",
    )
    group.add_argument("--output-tensor-type", metavar="TYPE", help="TYPE for output.weight")
    group.add_argument("--token-embedding-type", metavar="TYPE", help="TYPE for the token embedding")
    group.add_argument("--leave-output-tensor", action="store_true", help="output.weight keeps its type")
    group.add_argument("--no-fallback", action="store_true", help="refuse rows that hold no whole blocks of their type")
    group.add_argument("--allow-requantize", action="store_true", help="quantize again what is quantized already")


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--outtype",
        metavar="f32|f16|bf16|auto",
        default="auto",
        help="of a Hugging Face folder: how matrices are rounded before they are quantized; auto is bf16 or f16, as "
        "llama.cpp's converter chooses (default: auto)",
    )
    group.add_argument("--keep-split", action="store_true", help="write as many files as IN has; OUT is their prefix")
    group.add_argument(
        "--override-kv",
        metavar="KEY=TYPE:VALUE",
        action="append",
        default=[],
        help="set metadata; TYPE is int, float, bool or str; may be repeated",
    )
    group.add_argument("--prune-layers", metavar="N,N", help="leave blocks out, and number the others anew")


def run(args: argparse.Namespace) -> int:
    """Plan; write; report."""
    from refquant.cli import quantize_report as report
    from refquant.cli.console import progress
    from refquant.conversion import convert, lost_from, open_source, plan

    if args.output is None and not args.dry_run:
        raise RefquantError("no OUT given: name the file to write, or add --dry-run to see what would be written")
    source, imatrix, options = open_source(args.input, args.outtype), _imatrix(args), _options(args)
    if args.dry_run:
        decided = plan(source, args.format, options, has_imatrix=imatrix is not None, keep_order=args.keep_split)
    else:
        with progress() as bar:
            task = bar.add_task("weights", total=None)
            decided = convert(
                source,
                args.output,
                args.format,
                imatrix=imatrix,
                options=options,
                keep_split=args.keep_split,
                threads=args.threads,
                on_progress=lambda name, done, total: bar.update(task, description=name, completed=done, total=total),
            )
    report.show(args, decided, imatrix.imatrix if imatrix else None, lost_from(source))
    return 0


def _imatrix(args: argparse.Namespace) -> "ImatrixSource | None":
    from refquant.checkpoints.imatrix import read_imatrix
    from refquant.conversion import ImatrixSource

    if args.imatrix is None:
        if args.include_weights or args.exclude_weights:
            raise RefquantError(
                "--include-weights and --exclude-weights choose from an importance matrix: add --imatrix"
            )
        return None
    chosen = read_imatrix(args.imatrix).selected(tuple(args.include_weights), tuple(args.exclude_weights))
    if not chosen.entries:
        raise RefquantError(f"{args.imatrix}: no entry is left of the importance matrix; see --include-weights")
    return ImatrixSource(chosen, args.imatrix)


def _options(args: argparse.Namespace) -> "Options":
    from refquant.conversion import Options, Override, TensorTypeRule
    from refquant.conversion.patterns import read_tensor_types, writable_type

    rules: list[TensorTypeRule] = []
    for is_file, text in args.tensor_types:
        rules.extend(read_tensor_types(text) if is_file else [TensorTypeRule.parse(text)])
    return Options(
        pure=args.pure,
        tensor_types=tuple(rules),
        output_tensor_type=writable_type(args.output_tensor_type) if args.output_tensor_type else None,
        token_embedding_type=writable_type(args.token_embedding_type) if args.token_embedding_type else None,
        leave_output_tensor=args.leave_output_tensor,
        allow_requantize=args.allow_requantize,
        allow_fallback=not args.no_fallback,
        prune_layers=_layers(args.prune_layers),
        overrides=tuple(Override.parse(text) for text in args.override_kv),
    )


def _layers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = text.split(",")
    if not all(word.isdecimal() and word.isascii() and len(word) < 10 for word in words):
        raise RefquantError(f"--prune-layers {text!r}: numbers of blocks between commas, such as 20,21")
    return tuple(sorted({int(word) for word in words}))
