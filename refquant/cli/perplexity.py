"""`refquant perplexity`: how well a model predicts a text, and how far it is from its base."""

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from refquant.cli.llama_kl import run_llama_kl
from refquant.cli.measured_text import add_base_memory_argument, add_text_arguments, read_measured
from refquant.errors import RefquantError

if TYPE_CHECKING:
    from refquant.evaluation import Divergence, Perplexity
    from refquant.evaluation.scoring import Plan
    from refquant.models.model import Model

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
    what.add_argument("--format", metavar="SCHEME", help="quantize the model first: int4-g128, Q4_K_M, ...")
    what.add_argument(
        "--embeddings",
        metavar="keep|quantize",
        default="keep",
        help="with --format: what happens to token embedding and head (default: keep)",
    )
    what.add_argument(
        "--activations",
        metavar="float32|llama.cpp",
        default="float32",
        help="llama.cpp: round the input of every quantized matrix to eight bits first, as llama.cpp does on a CPU "
        "(default: float32)",
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
    from refquant.cli.console import print_json
    from refquant.evaluation.schemes import check_scheme, name_of, parse_scheme, quantized
    from refquant.evaluation.scoring import make_plan
    from refquant.models import load_model
    from refquant.models.rounded_inputs import with_activations

    if args.kl_base:
        return run_llama_kl(args)
    if args.save_kl_base and (args.base or args.method != "llama.cpp"):
        raise RefquantError("--save-kl-base keeps what one model predicts by --method llama.cpp; it takes no --base")
    scheme = parse_scheme(args.format) if args.format else None
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
    with ExitStack() as stack:
        if scheme is not None:
            check_scheme(model, scheme, args.embeddings)
            model = stack.enter_context(quantized(model, scheme, args.embeddings)).model
        figures = _measure(args, with_activations(model, args.activations), base, plan)
    name = None if scheme is None else name_of(scheme)
    if args.json:
        print_json(_document(args, name, *figures))
    else:
        _print_text(args, name, *figures)
    return 0


def _measure(
    args: argparse.Namespace, model: "Model", base: "Model | None", plan: "Plan"
) -> "tuple[Perplexity, Perplexity | None, Divergence | None]":
    """The model's perplexity, and beside a base that of the base and the divergence."""
    from refquant.cli.console import progress
    from refquant.evaluation import write_llama_base
    from refquant.evaluation.divergence import compare_models
    from refquant.evaluation.perplexity import run_plan

    with progress() as bar:
        task = bar.add_task("tokens", total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if args.save_kl_base:
            return write_llama_base(model, plan, args.save_kl_base, show), None, None
        if base is None:
            return run_plan(model, plan, show), None, None
        base_measured, measured, divergence = compare_models(base, model, plan, args.base_memory, show)
        return measured, base_measured, divergence


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
        "embeddings": _embeddings(args, scheme),
        "activations": args.activations,
        **record(measured),
        "base": args.base,
        "base_perplexity": record(base)["perplexity"] if base else None,
        "divergence": record(divergence) if divergence else None,
    }


def _embeddings(args: argparse.Namespace, scheme: str | None) -> str | None:
    """What happened to token embedding and head; None where nothing did, or a file type's own rule decided."""
    return args.embeddings if scheme and scheme == scheme.lower() else None


def _print_text(
    args: argparse.Namespace,
    scheme: str | None,
    measured: "Perplexity",
    base: "Perplexity | None",
    divergence: "Divergence | None",
) -> None:
    from refquant.cli.console import printable
    from refquant.evaluation.table import number, with_error

    embeddings = _embeddings(args, scheme)
    quantized = [f"quantized to {scheme}"] if scheme else []
    quantized += [f"embeddings: {embeddings}"] if embeddings else []
    quantized += ["activations of llama.cpp"] if args.activations != "float32" else []
    lines = [
        ("model", ", ".join([args.model, *quantized])),
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
