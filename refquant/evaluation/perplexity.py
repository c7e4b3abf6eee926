"""Perplexity of a model on a text, with everything that another program needs to arrive at the same figure."""

import math
import time
from dataclasses import dataclass

import numpy as np

from refquant.arrays import Float64
from refquant.evaluation import statistics
from refquant.evaluation.logprobs import token_nll
from refquant.evaluation.scoring import LanguageModel, OnScored, Plan, make_plan, scored_logits
from refquant.models.corpus import Text


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text, and how that was measured.

    Attributes:
        perplexity: exp of the mean negative log-likelihood over the scored tokens.
        stderr: its standard error, perplexity · s / √n; NaN where one token alone was scored.
        nll: total negative log-likelihood in nats.
        scored_tokens: n, the tokens that count.
        tokens: the tokens of all documents, BOS included.
        method: "sliding" (every token of a document but the first counts once), "chunked" (disjoint windows),
            "per-document" (one window from each document's start) or "llama.cpp" (llama-perplexity's).
        window: tokens seen together.
        stride: tokens between the begins of neighbouring windows.
        bos: "always" or "never": whether each document starts with BOS.
        documents: how many were measured, each on its own.
        ids_sha256: SHA-256 of the ids as little-endian int64, BOS included, −1 between documents.
        tokens_per_second: tokens fed through the model, those of overlapping windows each time, by wall-clock time.
    """

    perplexity: float
    stderr: float
    nll: float
    scored_tokens: int
    tokens: int
    method: str
    window: int
    stride: int
    bos: str
    documents: int
    ids_sha256: str
    tokens_per_second: float


def perplexity(
    model: LanguageModel,
    text: Text,
    *,
    method: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    limit: int | None = None,
    on_scored: OnScored | None = None,
) -> Perplexity:
    """Perplexity of a model on a text.

    Args:
        model: from `load_model`, or any object with `config`, `tokenizer`, `hidden` and `logits` like it.
        text: one text or one array of token ids; or a sequence of either, each a document measured on its own.
        method: "sliding", overlapping windows that score every token of a document but the first exactly once;
            "chunked", disjoint windows whose first tokens are not scored; "per-document", one window from each
            document's start, what lies beyond it being left out; "llama.cpp", disjoint whole windows whose second
            halves are scored, BOS in place of each one's first token, as llama-perplexity does.
        window: tokens seen together, at least 2; by default 2048 (512 for "llama.cpp"), or the model's positions
            where those are fewer.
        stride: for "sliding", 1 … window − 1, by default half the window.
        bos: "always", "never", or "auto": text gets BOS where the tokenizer adds one, ids are taken as they are.
        limit: measure the first so many tokens alone, BOS not counted.
        on_scored: called with the tokens scored so far and those in all, for a progress bar.

    Raises:
        UnknownNameError: no such method or BOS rule.
        NonFiniteError: the model gives a token no probability, or NaN; the message names it.
        RefquantError: a text too short to score, ids outside the vocabulary, a window or stride that cannot be.

    Source: spec/evaluation.md.
    """
    plan = make_plan(model, text, method=method, window=window, stride=stride, bos=bos, limit=limit)
    return run_plan(model, plan, on_scored)


def run_plan(model: LanguageModel, plan: Plan, on_scored: OnScored | None = None) -> Perplexity:
    """Measure a model by a plan; see `perplexity`."""
    start = time.perf_counter()
    nll = np.empty(plan.scored_tokens)
    for chunk in scored_logits(model, plan):
        nll[chunk.rows] = token_nll(chunk.logits, chunk.targets)
        if on_scored:
            on_scored(chunk.rows.stop, plan.scored_tokens)
    return perplexity_of(plan, nll, time.perf_counter() - start)


def perplexity_of(plan: Plan, nll: Float64, seconds: float) -> Perplexity:
    """The record of a run that found these negative log-likelihoods, float64 (scored tokens,) in nats."""
    plan.check_finite(nll)
    mean = statistics.mean(nll)
    value = math.exp(mean.value) if mean.value < math.log(np.finfo(np.float64).max) else math.inf
    return Perplexity(
        perplexity=value,
        stderr=value * mean.stderr,
        nll=float(nll.sum()),
        scored_tokens=len(nll),
        tokens=plan.corpus.tokens,
        method=plan.method,
        window=plan.window,
        stride=plan.stride,
        bos=plan.corpus.bos,
        documents=len(plan.corpus.documents),
        ids_sha256=plan.corpus.ids_sha256,
        tokens_per_second=plan.fed_tokens / seconds,
    )
