"""`refquant perplexity --kl-base`: llama-perplexity's KL figures."""

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from refquant.errors import RefquantError

if TYPE_CHECKING:
    from refquant.evaluation import LlamaBase, LlamaKl


def run_llama_kl(args: argparse.Namespace) -> int:
    """Measure a model beside a base file, and print."""
    from refquant.cli.console import print_json, progress
    from refquant.evaluation import llama_kl, read_llama_base
    from refquant.evaluation.schemes import check_scheme, name_of, parse_scheme, quantized
    from refquant.evaluation.table import record
    from refquant.models import load_model
    from refquant.models.rounded_inputs import with_activations

    _check(args)
    scheme = parse_scheme(args.format) if args.format else None
    base = read_llama_base(args.kl_base)
    model = load_model(args.model)
    with ExitStack() as stack:
        if scheme is not None:
            check_scheme(model, scheme, args.embeddings)
            model = stack.enter_context(quantized(model, scheme, args.embeddings)).model
        bar = stack.enter_context(progress())
        task = bar.add_task("tokens", total=None)
        model = with_activations(model, args.activations)
        found = llama_kl(model, base, lambda done, total: bar.update(task, completed=done, total=total))
    name = None if scheme is None else name_of(scheme)
    if args.json:
        how = {"model": args.model, "scheme": name, "activations": args.activations, "kl_base": str(args.kl_base)}
        print_json({**how, "window": base.window, **record(found)})
    else:
        _print_text(args.model + (f", quantized to {name}" if name else ""), base, found)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raise where an option is given that the base file has decided already."""
    fixed = {
        "--method": args.method not in (None, "llama.cpp"),
        "--window": args.window is not None,
        "--stride": args.stride is not None,
        "--limit": args.limit is not None,
        "--per-document": args.per_document,
        "--bos": args.bos != "auto",
        "--base": args.base is not None,
        "--save-kl-base": args.save_kl_base is not None,
    }
    given = [option for option, is_given in fixed.items() if is_given]
    if given:
        raise RefquantError(
            f"{', '.join(given)} given with --kl-base {args.kl_base}: the file holds the token ids and says how they "
            "are measured"
        )


def _print_text(model: str, base: "LlamaBase", found: "LlamaKl") -> None:
    from refquant.cli.console import printable

    f = found
    lines = [
        ("model", model),
        ("base", f"{base.path}, {len(base.ids):,} tokens in windows of {base.window}"),
        ("scored tokens", f"{f.scored_tokens:,}"),
        ("perplexity", f"{f.perplexity:.6f} ± {f.perplexity_stderr:.6f}"),
        ("base's", f"{f.base_perplexity:.6f} ± {f.base_perplexity_stderr:.6f}"),
        ("correlation", f"{100 * f.correlation:.2f} % of their ln"),
        ("ln ratio", f"{f.ln_ratio:.6f} ± {f.ln_ratio_stderr:.6f}"),
        ("ratio", f"{f.ratio:.6f} ± {f.ratio_stderr:.6f}"),
        ("difference", f"{f.difference:.6f} ± {f.difference_stderr:.6f}"),
        ("KL mean", f"{f.kl_mean:.6f} ± {f.kl_mean_stderr:.6f} nats"),
        *((f"KL {_percent(fraction)}", f"{value:.6f} nats") for fraction, value in f.kl_percentiles),
        ("Δp mean", f"{100 * f.dp_mean:.3f} ± {100 * f.dp_mean_stderr:.3f} %"),
        *((f"Δp {_percent(fraction)}", f"{100 * value:.3f} %") for fraction, value in f.dp_percentiles),
        ("RMS Δp", f"{100 * f.rms_dp:.3f} ± {100 * f.rms_dp_stderr:.3f} %"),
        ("same top token", f"{100 * f.same_top:.3f} ± {100 * f.same_top_stderr:.3f} %"),
    ]
    for name, value in lines:
        print(f"{name:<14}  {printable(value)}")


def _percent(fraction: float) -> str:
    names = {1.0: "largest", 0.5: "median", 0.0: "least"}
    return names.get(fraction, f"{100 * fraction:.1f} %")
