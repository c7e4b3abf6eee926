"""`refquant perplexity`: how well a model predicts a text, and how far it is from its base."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from refquant.cli.llama_kl import run_llama_kl
from refquant.cli.measured_text import add_base_memory_argument, add_text_arguments, read_measured
from refquant.errors import RefquantError

if TYPE_CHECKING:
    from refquant.evaluation import Divergence, Perplexity

DESCRIPTION = """\
Measure the perplexity of a model on a text: exp of the mean negative log-likelihood of its tokens, lower is better.

A figure means nothing without the ids, the window, the stride and the rule for BOS: all are printed with it, and
the ids as a SHA-256. The standard error takes tokens as independent.

--format quantizes the model first. --base compares its predictions, token by token, with those of another model:
Kullback-Leibler divergence, how often both find the same token likeliest, and the change of the right token's
probability.

--method llama.cpp measures as llama-perplexity does; its base files of log-probabilities are read and written too.
"""

EPILOG = """\
examples:
  refquant perplexity MODEL --text wiki.test.txt
  refquant perplexity MODEL --text wiki.test.txt --window 1024 --stride 512 --limit 8192
  refquant perplexity MODEL --text stories.txt --per-document --separator '<|endoftext|>'
  refquant perplexity MODEL --ids ids.json --method chunked --window 512
  refquant perplexity MODEL --text wiki.test.txt --format int4-g128 --base MODEL
  refquant perplexity BASE --text wiki.test.txt --method llama.cpp --save-kl-base base.kld
  refquant perplexity MODEL --kl-base base.kld
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program."""
    parser = commands.add_parser(
        "perplexity",
        help="measure a model on a text",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a GGUF file, or a Hugging Face folder with safetensors weights")
    source = add_text_arguments(parser, required=True)
    source.add_argument(
        "--kl-base",
        type=Path,
        metavar="FILE",
        help="a base file of llama-perplexity: measure on its token ids by its method, and print its KL figures",
    )
    what = parser.add_argument_group("the model")
    what.add_argument("--format", metavar="SCHEME", help="quantize the model first, say to int4-g128")
    what.add_argument(
        "--embeddings",
        metavar="keep|quantize",
        default="keep",
        help="with --format: what happens to token embedding and head (default: keep)",
    )
    what.add_argument("--base", metavar="MODEL", help="compare with this model, which may be the same folder")
    add_base_memory_argument(what)
    what.add_argument(
        "--save-kl-base",
        type=Path,
        metavar="FILE",
        help="with --method llama.cpp: keep the log-probabilities in a base file as llama-perplexity does",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from refquant.cli.console import print_json, progress
    from refquant.evaluation import write_llama_base
    from refquant.evaluation.divergence import compare_models
    from refquant.evaluation.perplexity import run_plan
    from refquant.evaluation.quantized_model import quantize_model
    from refquant.evaluation.scoring import make_plan
    from refquant.formats.registry import get_format
    from refquant.models import load_model

    if args.kl_base:
        return run_llama_kl(args)
    if args.save_kl_base and (args.base or args.method != "llama.cpp"):
        raise RefquantError("--save-kl-base keeps what one model predicts by --method llama.cpp; it takes no --base")
    fmt = get_format(args.format) if args.format else None
    text = read_measured(args)
    model = load_model(args.model)
    base = load_model(args.base) if args.base else None
    plan = make_plan(
        base or model,
        text,
        method=args.method,
        window=args.window,
        stride=args.stride,
        bos=args.bos,
        limit=args.limit,
    )
    if fmt is not None:
        model, _ = quantize_model(model, fmt, args.embeddings)
    with progress() as bar:
        task = bar.add_task("tokens", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        base_measured: Perplexity | None
        if args.save_kl_base:
            base_measured, divergence = None, None
            measured = write_llama_base(model, plan, args.save_kl_base, show)
        elif base is None:
            base_measured, measured, divergence = None, run_plan(model, plan, show), None
        else:
            base_measured, measured, divergence = compare_models(base, model, plan, args.base_memory, show)
    scheme = None if fmt is None else str(fmt)
    if args.json:
        print_json(_document(args, scheme, measured, base_measured, divergence))
    else:
        _print_text(args, scheme, measured, base_measured, divergence)
    return 0


def _document(
    args: argparse.Namespace,
    scheme: str | None,
    measured: "Perplexity",
    base: "Perplexity | None",
    divergence: "Divergence | None",
) -> dict[str, object]:
    from refquant.evaluation.table import record

    return {
        "model": args.model,
        "text": str(args.text or args.ids),
        "scheme": scheme,
        "embeddings": args.embeddings if scheme else None,
        **record(measured),
        "base": args.base,
        "base_perplexity": record(base)["perplexity"] if base else None,
        "divergence": record(divergence) if divergence else None,
    }


def _print_text(
    args: argparse.Namespace,
    scheme: str | None,
    measured: "Perplexity",
    base: "Perplexity | None",
    divergence: "Divergence | None",
) -> None:
    from refquant.cli.console import printable
    from refquant.evaluation.table import number, with_error

    lines = [
        ("model", args.model + (f", quantized to {scheme}, embeddings: {args.embeddings}" if scheme else "")),
        ("text", str(args.text or args.ids)),
        ("perplexity", with_error(measured.perplexity, measured.stderr)),
        ("total NLL", f"{measured.nll:.4f} nats"),
        ("scored tokens", f"{measured.scored_tokens:,} of {measured.tokens:,}, in {measured.documents} document(s)"),
        ("method", f"{measured.method}, window {measured.window}, stride {measured.stride}"),
        ("BOS", f"{measured.bos} (--bos {args.bos})"),
        ("ids sha256", measured.ids_sha256),
        ("speed", f"{measured.tokens_per_second:,.0f} tokens/s"),
    ]
    if base and divergence:
        d = divergence
        lines += [
            ("base", f"{args.base}, perplexity {number(base.perplexity)}"),
            ("KL mean", f"{d.kl_mean:.6f} ± {d.kl_mean_stderr:.6f} nats"),
            ("KL 99.9 %", f"{d.kl_p999:.6f} ({d.kl_p999_low:.6f} … {d.kl_p999_high:.6f}) nats"),
            ("same top token", f"{100 * d.same_top:.3f} ± {100 * d.same_top_stderr:.3f} %"),
            ("RMS Δp", f"{100 * d.rms_dp:.3f} ± {100 * d.rms_dp_stderr:.3f} %"),
        ]
    for name, value in lines:
        print(f"{name:<14}  {printable(value)}")
