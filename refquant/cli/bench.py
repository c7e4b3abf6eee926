"""`refquant bench`: what each scheme costs a model, as a table."""

import argparse
from pathlib import Path

from refquant.cli.measured_text import add_base_memory_argument, add_text_arguments, read_measured
from refquant.errors import RefquantError

EMBEDDED_MODEL = "stories260K (embedded)"
EMBEDDED_TEXT = "twelve held-out TinyStories (embedded)"

DESCRIPTION = """\
Quantize a model every way that is asked for, and measure what each costs: bits per weight, bytes, SQNR of the
weights, perplexity on a text, divergence from the model as it is, and time.

Without MODEL a model of 260 thousand parameters that comes with refquant is measured, in seconds, and shows the
field's first lesson: four bits with one scale a tensor ruin it, and a scale for every 32 weights repairs it.

A scheme in upper case is a file type of llama.cpp (Q4_0, Q4_K_M, IQ4_XS, ...): the model is requantized as
`refquant quantize` does it, embedding and head too, each tensor by the file type's rule.

The base runs once and its log-probabilities are kept. Matrices stay quantized while a model runs; one scheme's model
is in memory at a time. `refquant formats` lists what a scheme can be made of.
"""

EPILOG = """\
examples:
  refquant bench
  refquant bench --formats int4,int4-g32,nf4-b64 --plot table.svg
  refquant bench MODEL --text wiki.test.txt --window 1024 --stride 512 --limit 8192
  refquant bench MODEL --text wiki.test.txt --formats int8-row,nf4-b64-dq --markdown
  refquant bench model.gguf --text wiki.test.txt --formats Q8_0,Q4_K_M,IQ4_XS --imatrix imatrix.gguf
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "bench",
        help="show what each scheme costs in size, error and perplexity",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="a GGUF file or a Hugging Face folder (default: the embedded model)"
    )
    parser.add_argument("--formats", metavar="A,B,C", help="schemes, in the order of the rows (default: a tour of all)")
    parser.add_argument(
        "--embeddings",
        default="keep",
        metavar="keep|quantize",
        help="what happens to token embedding and head, a tied pair being quantized once (default: keep)",
    )
    parser.add_argument("--imatrix", type=Path, metavar="FILE", help="an importance matrix for the file types")
    add_base_memory_argument(parser)
    add_text_arguments(parser, required=False)
    output = parser.add_argument_group("what is printed")
    shape = output.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="one JSON document on standard output")
    shape.add_argument("--markdown", action="store_true", help="a Markdown table")
    output.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw perplexity against bits per weight, .svg or .png"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print, and draw."""
    from refquant.checkpoints.imatrix import read_imatrix
    from refquant.cli.console import print_json, print_table, progress
    from refquant.evaluation import DEFAULT_SCHEMES, benchmark, plot, table
    from refquant.evaluation.schemes import parse_scheme
    from refquant.models import embedded, load_model

    schemes = [parse_scheme(scheme) for scheme in _split(args.formats) or DEFAULT_SCHEMES]
    if args.plot:
        plot.check_plot(args.plot)
    if args.text is None and args.ids is None:
        args.text, args.per_document, text_name = embedded.text_path(), True, EMBEDDED_TEXT
    else:
        text_name = str(args.text or args.ids)
    text = read_measured(args)
    model = load_model(args.model or embedded.path())
    with progress() as bar:
        task = bar.add_task("base", total=None)
        result = benchmark(
            model,
            schemes,
            text,
            method=args.method,
            window=args.window,
            stride=args.stride,
            bos=args.bos,
            limit=args.limit,
            embeddings=args.embeddings,
            imatrix=read_imatrix(args.imatrix) if args.imatrix else None,
            base_memory=args.base_memory,
            model_name=args.model or EMBEDDED_MODEL,
            text_name=text_name,
            on_progress=lambda scheme, done, total: bar.update(task, description=scheme, completed=done, total=total),
        )
    if args.json:
        print_json(table.document(result))
    elif args.markdown:
        print(table.markdown(result), end="")
    else:
        columns = [name if name == "scheme" else f">{name}" for name in table.COLUMNS]
        print_table(columns, table.cells(result), caption=table.caption(result))
    if args.plot:
        plot.save_plot(result, args.plot)
    return 0


def _split(schemes: str | None) -> list[str]:
    """The schemes between commas; None stands for the default."""
    if schemes is None:
        return []
    names = [name.strip() for name in schemes.split(",")]
    if not all(names):
        raise RefquantError(f"--formats {schemes!r}: a scheme is missing; write them as int8,int4-g32")
    return names
