"""How the next token is chosen from logits: greedy, or drawn after temperature, top-k, top-p and min-p, in that order.

The order and the meaning of each filter are those of transformers' logits processors; every filter sees the
distribution that the ones before it left.

| filter | keeps |
|---|---|
| temperature T | all tokens; logits are divided by T |
| top-k | the k largest logits, and all that equal the k-th |
| top-p | the most likely tokens until their probabilities reach p; of equal ones the lower id first |
| min-p | tokens at least p times as likely as the likeliest |

Source: temperature and top-k as everywhere; top-p Holtzman et al. 2020 (arXiv 1904.09751); min-p Nguyen et al. 2024
(arXiv 2407.01082); order as in transformers' generation/utils.py.
"""

import math
from dataclasses import dataclass

import numpy as np

from refquant.arrays import Float32, Float64
from refquant.errors import NonFiniteError, RefquantError


@dataclass(frozen=True)
class Sampling:
    """How to choose a token; the defaults choose the likeliest.

    Attributes:
        temperature: 0 for the likeliest token, whatever the filters; else what logits are divided by, above 0.
        top_k: tokens that top-k keeps, at least 1; None keeps all.
        top_p: the probability that top-p keeps, in (0, 1]; 1 keeps all.
        min_p: the share of the highest probability that min-p asks for, in [0, 1]; 0 keeps all.

    Raises:
        RefquantError: a value outside its range; the message names both.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise RefquantError(f"temperature {self.temperature} given; it must be 0 (greedy) or positive and finite")
        if self.top_k is not None and self.top_k < 1:
            raise RefquantError(f"top-k {self.top_k} given; it must be at least 1; leave it out to keep every token")
        if not 0 < self.top_p <= 1:
            raise RefquantError(f"top-p {self.top_p} given; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise RefquantError(f"min-p {self.min_p} given; it must be at least 0 and at most 1")


def choose(logits: Float32, sampling: Sampling, random: np.random.Generator) -> int:
    """The next token.

    Args:
        logits: float32 (vocabulary,); −inf rules a token out.
        sampling: how to choose. Greedy takes the lowest of equal ids and draws no random number.
        random: the source of randomness; one draw a token.

    Returns:
        A token id; never one of probability zero.

    Raises:
        NonFiniteError: a NaN or +inf among the logits, or nothing but −inf.
    """
    check_logits(logits)
    if sampling.temperature == 0:
        return int(np.argmax(logits))
    p = probabilities(logits, sampling)
    cumulative = np.cumsum(p)
    # A draw is at most 1 − 2⁻⁵³, and its product with the total stays below the total also when rounded.
    return int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))


def probabilities(logits: Float32, sampling: Sampling) -> Float64:
    """The distribution that a token is drawn from: float64 (vocabulary,), 0 for what the filters take away.

    A temperature of 0 gives the limit: all on the likeliest token, the lowest of equal ids.
    """
    if sampling.temperature == 0:
        return np.eye(1, logits.size, int(np.argmax(logits)), dtype=np.float64).ravel()
    with np.errstate(over="ignore"):  # a small temperature sends what is not the likeliest to −inf, as it should
        scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled.size:
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    p = _softmax(scaled)
    if sampling.top_p < 1:
        order = np.argsort(-logits, kind="stable")  # p itself may round differing logits to one value
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= sampling.top_p]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return np.asarray(p / p.sum(), np.float64)


def check_logits(logits: Float32) -> None:
    """Raise NonFiniteError unless the logits say which token is likeliest."""
    wrong = np.isnan(logits) | (logits == np.inf)
    if wrong.any():
        token = int(np.argmax(wrong))
        raise NonFiniteError(f"logits: {logits[token]} for token {token}; the model's weights or activations overflow")
    if not np.isfinite(logits).any():
        raise NonFiniteError("logits: -inf for every token; no token can be chosen")


def _softmax(z: Float64) -> Float64:
    """exp(z) over its sum, for z whose maximum is 0."""
    p = np.exp(z)
    return np.asarray(p / p.sum(), np.float64)
