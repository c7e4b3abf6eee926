"""llama-perplexity's KL figures: a model beside a base whose log-probabilities stand in a file (spec/evaluation.md)."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refquant.arrays import Float32, Float64, Int64
from refquant.errors import ModelError, RefquantError
from refquant.evaluation import statistics
from refquant.evaluation.llama_base_file import LlamaBase, llama_base_writer
from refquant.evaluation.logprobs import row_blocks, token_nll
from refquant.evaluation.perplexity import Perplexity, perplexity_of
from refquant.evaluation.scoring import LanguageModel, OnScored, Plan, plan_of, scored_logits
from refquant.models.corpus import Corpus

FRACTIONS = (1.0, 0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01, 0.001, 0.0)
_LEAST = np.float32(-16)  # what the base finds less likely than exp(−16) does not count


@dataclass(frozen=True)
class LlamaKl:
    """What llama-perplexity prints with --kl-divergence; errors are standard errors, divergences in nats.

    Attributes:
        perplexity: of the model; `perplexity_stderr` its error.
        base_perplexity: of the base, from its sixteen bits.
        correlation: of the two models' log-likelihoods.
        ln_ratio: mean ln(PPL(Q) / PPL(base)).
        ratio: PPL(Q) / PPL(base).
        difference: PPL(Q) − PPL(base).
        kl_mean: mean KL(base ‖ model).
        kl_percentiles: (fraction, KL) pairs from the largest down to the smallest.
        dp_mean: mean change of the right token's probability.
        dp_percentiles: (fraction, change) pairs.
        rms_dp: root mean square of the change.
        same_top: share of tokens where both find the same token likeliest.
        scored_tokens: the tokens that count.
    """

    perplexity: float
    perplexity_stderr: float
    base_perplexity: float
    base_perplexity_stderr: float
    correlation: float
    ln_ratio: float
    ln_ratio_stderr: float
    ratio: float
    ratio_stderr: float
    difference: float
    difference_stderr: float
    kl_mean: float
    kl_mean_stderr: float
    kl_percentiles: tuple[tuple[float, float], ...]
    dp_mean: float
    dp_mean_stderr: float
    dp_percentiles: tuple[tuple[float, float], ...]
    rms_dp: float
    rms_dp_stderr: float
    same_top: float
    same_top_stderr: float
    scored_tokens: int


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The figures of n scored tokens, each (n,)."""

    nll: Float64
    base_nll: Float64
    kl: Float64
    dp: Float64
    same_top: np.typing.NDArray[np.bool_]


def write_llama_base(model: LanguageModel, plan: Plan, path: Path, on_scored: OnScored | None = None) -> Perplexity:
    """Measure a model by a plan, and keep what it predicts in a base file, which appears whole or not at all.

    Raises:
        RefquantError: a plan of another method than "llama.cpp", or of several documents.
        NonFiniteError: the model gives a token no probability, or NaN.
        OSError: the file cannot be written.
    """
    if plan.method != "llama.cpp" or len(plan.corpus.documents) != 1:
        raise RefquantError(
            f"method {plan.method!r} with {len(plan.corpus.documents)} documents given; a base file holds the windows "
            "of one document by method 'llama.cpp'"
        )
    start = time.perf_counter()
    ids = plan.corpus.documents[0][: len(plan.passages) * plan.window]
    nll = np.empty(plan.scored_tokens)
    with llama_base_writer(path, plan.window, model.config.vocab_size, ids) as writer:
        for chunk in scored_logits(model, plan):
            for rows in row_blocks(*chunk.logits.shape):
                writer.write(chunk.logits[rows])
            nll[chunk.rows] = token_nll(chunk.logits, chunk.targets)
            if on_scored:
                on_scored(chunk.rows.stop, plan.scored_tokens)
        return perplexity_of(plan, nll, time.perf_counter() - start)


def llama_kl(model: LanguageModel, base: LlamaBase, on_scored: OnScored | None = None) -> LlamaKl:
    """Compare a model with a base, token by token, over the text of the base file.

    Args:
        model: of the base's vocabulary. BOS is fed in place of each window's first token where its tokenizer adds BOS.
        base: from `read_llama_base`.
        on_scored: called with the tokens scored so far and those in all.

    Raises:
        ModelError: the vocabularies differ in size.
        NonFiniteError: the model gives a token no probability, or NaN.

    Source: spec/evaluation.md; llama.cpp, tools/perplexity/perplexity.cpp.
    """
    if model.config.vocab_size != base.vocab_size:
        raise ModelError(
            f"{base.path}: log-probabilities over a vocabulary of {base.vocab_size} given; the model has "
            f"{model.config.vocab_size}: it is not the base's"
        )
    adds_bos = model.tokenizer is not None and model.tokenizer.adds_bos
    corpus = Corpus((base.ids,), "always" if adds_bos else "never")
    plan = plan_of(corpus, "llama.cpp", base.window, base.window, model.tokenizer)
    found = list(_compared(model, plan, base, on_scored))
    tokens = _Tokens(*(np.concatenate([getattr(part, name) for part in found]) for name in _Tokens.__annotations__))
    plan.check_finite(tokens.nll)
    return _figures(tokens)


def _compared(model: LanguageModel, plan: Plan, base: LlamaBase, on_scored: OnScored | None) -> Iterator[_Tokens]:
    for chunk in scored_logits(model, plan):
        for rows in row_blocks(*chunk.logits.shape):
            begin = chunk.rows.start + rows.start
            stored = base.logprobs(slice(begin, begin + rows.stop - rows.start))
            yield _compare(stored, chunk.logits[rows], chunk.targets[rows])
        if on_scored:
            on_scored(chunk.rows.stop, plan.scored_tokens)


def _compare(base: Float32, logits: Float32, targets: Int64) -> _Tokens:
    """The figures of n tokens: log-probabilities and logits, float32 (n, vocabulary) each, in llama.cpp's order.

    The largest logit and the logarithm of the sum are float32 and are added before the logit is taken from them.
    """
    each = np.arange(len(targets))
    largest = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - largest).sum(-1, dtype=np.float64)).astype(np.float32)  # (n,)
    level = largest[:, 0] + log_sum
    nll, base_nll = level - logits[each, targets], -base[each, targets]
    product = np.exp(base)
    product *= (base - logits) + level[:, None]
    product[base <= _LEAST] = 0
    return _Tokens(
        nll=nll.astype(np.float64),
        base_nll=base_nll.astype(np.float64),
        kl=product.sum(-1, dtype=np.float64),
        dp=(np.exp(-nll) - np.exp(-base_nll)).astype(np.float64),
        same_top=base.argmax(-1) == logits.argmax(-1),
    )


def _figures(tokens: _Tokens) -> LlamaKl:
    n = len(tokens.nll)
    log, base_log = statistics.mean(tokens.nll), statistics.mean(tokens.base_nll)
    covariance = float(np.cov(tokens.nll, tokens.base_nll)[0, 1]) / n if n > 1 else math.nan
    perplexity, base_perplexity = math.exp(log.value), math.exp(base_log.value)
    stderr, base_stderr = perplexity * log.stderr, base_perplexity * base_log.stderr
    ln_ratio = log.value - base_log.value
    ln_ratio_stderr = _difference_error(log.stderr, base_log.stderr, covariance)
    kl, dp, rms = statistics.mean(tokens.kl), statistics.mean(tokens.dp), statistics.root_mean_square(tokens.dp)
    hits = int(tokens.same_top.sum())
    spread = log.stderr * base_log.stderr
    return LlamaKl(
        perplexity=perplexity,
        perplexity_stderr=stderr,
        base_perplexity=base_perplexity,
        base_perplexity_stderr=base_stderr,
        correlation=covariance / spread if spread else math.nan,
        ln_ratio=ln_ratio,
        ln_ratio_stderr=ln_ratio_stderr,
        ratio=math.exp(ln_ratio),
        ratio_stderr=math.exp(ln_ratio) * ln_ratio_stderr,
        difference=perplexity - base_perplexity,
        difference_stderr=_difference_error(stderr, base_stderr, perplexity * base_perplexity * covariance),
        kl_mean=kl.value,
        kl_mean_stderr=kl.stderr,
        kl_percentiles=_percentiles(tokens.kl),
        dp_mean=dp.value,
        dp_mean_stderr=dp.stderr,
        dp_percentiles=_percentiles(tokens.dp),
        rms_dp=rms.value,
        rms_dp_stderr=rms.stderr,
        same_top=hits / n,
        same_top_stderr=math.sqrt(hits / n * (1 - hits / n) / (n - 1)) if n > 1 else math.nan,
        scored_tokens=n,
    )


def _difference_error(a: float, b: float, covariance: float) -> float:
    """The error of a difference of two correlated means; 0 where rounding leaves its square below zero."""
    return math.sqrt(max(a * a + b * b - 2 * covariance, 0.0))


def _percentiles(sample: Float64) -> tuple[tuple[float, float], ...]:
    """By straight lines between the sorted values, the k-th of n standing at (k − 1) / (n − 1)."""
    return tuple(zip(FRACTIONS, map(float, np.quantile(sample, FRACTIONS)), strict=True))
