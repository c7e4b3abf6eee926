"""How far a model's predictions are from those of its base, token by token (spec/evaluation.md)."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from refquant.arrays import Float32, Float64, Int64
from refquant.errors import ModelError
from refquant.evaluation import statistics
from refquant.evaluation.base_logprobs import DEFAULT_MEMORY, logprob_store
from refquant.evaluation.logprobs import log_softmax, row_blocks
from refquant.evaluation.perplexity import Perplexity, perplexity_of
from refquant.evaluation.scoring import LanguageModel, OnScored, Plan, make_plan, scored_logits
from refquant.models.corpus import Text


@dataclass(frozen=True)
class Divergence:
    """A model beside its base, over the scored tokens of a text; a model beside itself has exactly 0, 0, 1 and 0.

    Attributes:
        kl_mean: mean Kullback–Leibler divergence KL(base ‖ model) in nats.
        kl_mean_stderr: its standard error.
        kl_p999: 99.9th percentile of the divergence.
        kl_p999_low: the order statistic one binomial deviation of ranks below it.
        kl_p999_high: the order statistic as many ranks above it.
        same_top: share of tokens where both models find the same token likeliest (the lowest id of equal ones).
        same_top_stderr: its standard error.
        rms_dp: root mean square change of the probability given to the right token.
        rms_dp_stderr: its standard error.
        scored_tokens: the tokens that count.
    """

    kl_mean: float
    kl_mean_stderr: float
    kl_p999: float
    kl_p999_low: float
    kl_p999_high: float
    same_top: float
    same_top_stderr: float
    rms_dp: float
    rms_dp_stderr: float
    scored_tokens: int


class TokenDivergence(NamedTuple):
    """Two models' predictions compared at each of n tokens.

    Attributes:
        kl: KL(base ‖ model) in nats, float64 (n,).
        same_top: whether both find the same token likeliest, bool (n,).
        dp: change of the right token's probability, float64 (n,).
    """

    kl: Float64
    same_top: np.typing.NDArray[np.bool_]
    dp: Float64


def divergence(
    base: LanguageModel,
    model: LanguageModel,
    text: Text,
    *,
    method: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    limit: int | None = None,
    base_memory: int = DEFAULT_MEMORY,
    on_scored: OnScored | None = None,
) -> Divergence:
    """Compare a model with its base on a text.

    Args:
        base: the model that is taken as right; its tokenizer makes the ids, and its positions set the window.
        model: the model compared with it, of the same vocabulary.
        text, method, window, stride, bos, limit: as for `perplexity`.
        base_memory: bytes of memory that the base's log-probabilities may take; beyond it they go to a temporary file.
        on_scored: called with the tokens scored so far, by either model, and those in all.

    Raises:
        ModelError: the vocabularies differ in size.
        NonFiniteError: a model gives a token no probability, or NaN.
        RefquantError: as for `perplexity`.

    Source: spec/evaluation.md.
    """
    plan = make_plan(base, text, method=method, window=window, stride=stride, bos=bos, limit=limit)
    return compare_models(base, model, plan, base_memory, on_scored)[2]


def compare_models(
    base: LanguageModel,
    model: LanguageModel,
    plan: Plan,
    base_memory: int = DEFAULT_MEMORY,
    on_scored: OnScored | None = None,
) -> tuple[Perplexity, Perplexity, Divergence]:
    """Both models' perplexity, the base's first, and their divergence; see `divergence`."""
    if base.config.vocab_size != model.config.vocab_size:
        raise ModelError(
            f"vocabularies of {base.config.vocab_size} (base) and {model.config.vocab_size} tokens given; "
            "only models of one vocabulary can be compared token by token"
        )

    def counted(run: int, done: int, total: int) -> None:
        if on_scored:
            on_scored(run * total + done, 2 * total)

    with logprob_store(plan.scored_tokens, base.config.vocab_size, base_memory) as store:
        base_perplexity = run_base(base, plan, store, partial(counted, 0))
        return base_perplexity, *run_beside(model, plan, store, partial(counted, 1))


def run_base(base: LanguageModel, plan: Plan, store: Float32, on_scored: OnScored) -> Perplexity:
    """Measure the base, and keep its log-probabilities in the store, float32 (scored tokens, vocabulary)."""
    start = time.perf_counter()
    nll = np.empty(plan.scored_tokens)
    for chunk in scored_logits(base, plan):
        nll[chunk.rows] = log_softmax(chunk.logits, chunk.targets)
        store[chunk.rows] = chunk.logits
        on_scored(chunk.rows.stop, plan.scored_tokens)
    return perplexity_of(plan, nll, time.perf_counter() - start)


def run_beside(model: LanguageModel, plan: Plan, store: Float32, on_scored: OnScored) -> tuple[Perplexity, Divergence]:
    """Measure a model, and compare it with the base whose log-probabilities the store keeps."""
    start = time.perf_counter()
    nll, found = np.empty(plan.scored_tokens), []
    for chunk in scored_logits(model, plan):
        nll[chunk.rows] = log_softmax(chunk.logits, chunk.targets)
        found.append(compare(store[chunk.rows], chunk.logits, chunk.targets))
        on_scored(chunk.rows.stop, plan.scored_tokens)
    return perplexity_of(plan, nll, time.perf_counter() - start), divergence_of(found)


def compare(base: Float32, model: Float32, targets: Int64) -> TokenDivergence:
    """Compare log-probabilities, float32 (n, vocabulary) each, at n tokens whose right ids are `targets`.

    KL is Σ p·(log p − log q) with p and the products in float32 and the sum in float64. Equal bits give exactly 0;
    where the models nearly agree, rounding may leave a token's KL below zero, by about 1e-7.
    """
    n = len(targets)
    kl, same_top, dp = np.empty(n), np.empty(n, np.bool_), np.empty(n)
    for rows in row_blocks(*base.shape):
        log_p, log_q, right = base[rows], model[rows], targets[rows]  # (rows in cache, vocabulary)
        product = np.exp(log_p)
        product *= log_p - log_q
        kl[rows] = product.sum(-1, dtype=np.float64)
        same_top[rows] = log_p.argmax(-1) == log_q.argmax(-1)
        each = np.arange(len(right))
        dp[rows] = np.exp(log_q[each, right].astype(np.float64)) - np.exp(log_p[each, right].astype(np.float64))
    return TokenDivergence(kl, same_top, dp)


def divergence_of(found: Iterable[TokenDivergence]) -> Divergence:
    """The record of comparisons, chunk after chunk."""
    kl, same_top, dp = (np.concatenate(column) for column in zip(*found, strict=True))
    kl_mean, tail = statistics.mean(kl), statistics.percentile(kl, 0.999)
    top, change = statistics.share(int(same_top.sum()), len(kl)), statistics.root_mean_square(dp)
    return Divergence(
        kl_mean=kl_mean.value,
        kl_mean_stderr=kl_mean.stderr,
        kl_p999=tail.value,
        kl_p999_low=tail.low,
        kl_p999_high=tail.high,
        same_top=top.value,
        same_top_stderr=top.stderr,
        rms_dp=change.value,
        rms_dp_stderr=change.stderr,
        scored_tokens=len(kl),
    )
