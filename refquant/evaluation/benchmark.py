"""What each scheme costs a model: one row a scheme, the base first (spec/evaluation.md)."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from refquant.arrays import Float32
from refquant.checkpoints.imatrix import Imatrix
from refquant.errors import RefquantError
from refquant.evaluation.base_logprobs import DEFAULT_MEMORY, logprob_store
from refquant.evaluation.divergence import Divergence, run_base, run_beside
from refquant.evaluation.perplexity import Perplexity
from refquant.evaluation.quantized_model import Cost, cost_as_stored
from refquant.evaluation.schemes import Fallback, Quantized, Scheme, check_scheme, name_of, parse_scheme, quantized
from refquant.evaluation.scoring import OnScored, Plan, make_plan
from refquant.models.corpus import Text
from refquant.models.model import Model

BASE = "base"

DEFAULT_SCHEMES = (
    "int8",
    "int8-row",
    "llm-int8",
    "int4",
    "int4-row",
    "int4-g64",
    "int4-g32",
    "int4-g32-f16",
    "int4-g32-asym",
    "nf4-b64",
    "nf4-b64-dq",
    "fp4-b64",
    "int3-g32",
    "int2-g16-asym",
)

OnProgress: TypeAlias = Callable[[str, int, int], None]
"""Told which scheme is under way, how many tokens have been scored, and how many there are in all."""


@dataclass(frozen=True)
class Row:
    """What one scheme costs.

    Attributes:
        scheme: its canonical name, or "base".
        bits_per_weight: of the quantized matrices, everything stored counted.
        bytes: of the whole model: quantized matrices as stored, the rest as in its checkpoint.
        sqnr_db: signal to quantization noise over all quantized weights together; inf for the base.
        perplexity: on the text.
        perplexity_stderr: its standard error.
        delta: perplexity less that of the base.
        kl_mean: mean KL(base ‖ scheme) in nats.
        same_top: share of tokens where base and scheme find the same token likeliest.
        seconds: wall-clock time of quantizing and measuring.
        fallbacks: of a file type, the types that stand in for those of its rule.
    """

    scheme: str
    bits_per_weight: float
    bytes: int
    sqnr_db: float
    perplexity: float
    perplexity_stderr: float
    delta: float
    kl_mean: float
    same_top: float
    seconds: float
    fallbacks: tuple[Fallback, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A table of what each scheme costs, and how it was measured.

    Attributes:
        model: what the model is called.
        text: what the text is called.
        embeddings: "keep" or "quantize": what happened to token embedding and head.
        base: the base's perplexity, with method, window, stride, BOS rule and hash of the ids.
        divergences: each scheme's divergence from the base in full, in the order of rows[1:].
        rows: the base, then one row a scheme in the order given.
    """

    model: str
    text: str
    embeddings: str
    base: Perplexity
    divergences: tuple[Divergence, ...]
    rows: tuple[Row, ...]


def benchmark(
    model: Model,
    schemes: Sequence[str | Scheme],
    text: Text,
    *,
    method: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    limit: int | None = None,
    embeddings: str = "keep",
    imatrix: Imatrix | None = None,
    base_memory: int = DEFAULT_MEMORY,
    model_name: str = "model",
    text_name: str = "text",
    on_progress: OnProgress | None = None,
) -> Benchmark:
    """Measure what each scheme costs a model on a text.

    The base runs once. Each scheme's matrices are quantized one by one, kept quantized while the model runs, and
    dropped before the next scheme.

    Args:
        model: from `load_model`.
        schemes: scheme strings or Formats, and file types of llama.cpp in upper case (`"Q4_K_M"`): the model is then
            requantized as `refquant quantize` does it, its rule deciding for embedding and head too.
        text, method, window, stride, bos, limit: as for `perplexity`.
        embeddings: "keep" token embedding and head, or "quantize" them too (a tied pair once).
        imatrix: an importance matrix for the file types.
        base_memory: bytes of memory that the base's log-probabilities may take; beyond it they go to a temporary file.
        model_name: what the table calls the model.
        text_name: what the table calls the text.
        on_progress: called with the scheme under way, the tokens scored so far and those in all.

    Raises:
        UnknownNameError: a misspelt scheme, method or rule, before any work is done.
        NonFiniteError: a scheme's model gives a token no probability, or NaN.
        RefquantError: as for `perplexity`; or a matrix that a scheme cannot take.

    Source: spec/evaluation.md.
    """
    parsed = [parse_scheme(scheme) for scheme in schemes]
    for scheme in parsed:
        check_scheme(model, scheme, embeddings, imatrix)
    base = cost_as_stored(model, embeddings)
    plan = make_plan(model, text, method=method, window=window, stride=stride, bos=bos, limit=limit)
    counters = _counters([BASE, *map(name_of, parsed)], on_progress)
    with logprob_store(plan.scored_tokens, model.config.vocab_size, base_memory) as store:
        start = time.perf_counter()
        base_perplexity = run_base(model, plan, store, counters[0])
        rows = [_row(BASE, base, (), base_perplexity, base_perplexity, None, time.perf_counter() - start)]
        divergences = []
        for scheme, counter in zip(parsed, counters[1:], strict=True):
            start = time.perf_counter()
            counter(0, plan.scored_tokens)
            cost, fallbacks, measured, divergence = _run(
                quantized(model, scheme, embeddings, imatrix), name_of(scheme), plan, store, counter
            )
            seconds = time.perf_counter() - start
            rows.append(_row(name_of(scheme), cost, fallbacks, measured, base_perplexity, divergence, seconds))
            divergences.append(divergence)
    return Benchmark(model_name, text_name, embeddings, base_perplexity, tuple(divergences), tuple(rows))


def _run(
    making: AbstractContextManager[Quantized], name: str, plan: Plan, store: Float32, on_scored: OnScored
) -> tuple[Cost, tuple[Fallback, ...], Perplexity, Divergence]:
    """Quantize, and measure beside the base; the quantized model does not outlive the call."""
    try:
        with making as made:
            return made.cost, made.fallbacks, *run_beside(made.model, plan, store, on_scored)
    except RefquantError as error:
        raise type(error)(f"scheme {name}: {error}") from None


def _row(
    scheme: str,
    cost: Cost,
    fallbacks: tuple[Fallback, ...],
    measured: Perplexity,
    base: Perplexity,
    divergence: Divergence | None,
    seconds: float,
) -> Row:
    return Row(
        scheme=scheme,
        bits_per_weight=cost.bits_per_weight,
        bytes=cost.nbytes,
        sqnr_db=cost.sqnr_db,
        perplexity=measured.perplexity,
        perplexity_stderr=measured.stderr,
        delta=measured.perplexity - base.perplexity,
        kl_mean=divergence.kl_mean if divergence else 0.0,
        same_top=divergence.same_top if divergence else 1.0,
        seconds=seconds,
        fallbacks=fallbacks,
    )


def _counters(names: Sequence[str], on_progress: OnProgress | None) -> list[OnScored]:
    """One callback a run, which counts the tokens of all runs."""

    def counter(run: int, name: str) -> OnScored:
        def on_scored(done: int, total: int) -> None:
            if on_progress:
                on_progress(name, run * total + done, len(names) * total)

        return on_scored

    return [counter(run, name) for run, name in enumerate(names)]
