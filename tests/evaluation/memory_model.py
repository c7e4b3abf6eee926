"""A language model small enough to check by hand, whose predictions depend on where its window begins.

h_t = h_(t−1) / 2 + E[id_t] from h = 0 at the window's begin; logits = W h. `reference_logprobs` computes the same one
token at a time in float64.
"""

from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True)
class Config:
    vocab_size: int = 11
    max_positions: int = 16


@dataclass(frozen=True)
class Letters:
    """One token a letter: a is 1, b is 2, …; 0 is BOS."""

    bos_id: int | None = 0
    adds_bos: bool = True

    def encode(self, text):
        return np.array([ord(letter) - ord("a") + 1 for letter in text], np.int64)

    encode_literal = encode


@dataclass(frozen=True)
class Stored:
    """A float32 matrix as a checkpoint holds it."""

    array: np.ndarray

    @property
    def shape(self):
        return self.array.shape

    @property
    def nbytes(self):
        return self.array.nbytes

    def dequantize(self):
        return self.array


@dataclass(frozen=True, eq=False)
class MemoryModel:
    weights: dict
    config: Config = Config()
    tokenizer: Letters | None = Letters()
    fed: list = field(default_factory=list)
    linear_names = ("mix",)
    embedding_names = ("embed", "head")

    def with_weights(self, weights):
        return replace(self, weights={**self.weights, **weights})

    def hidden(self, ids, cache=None, keep=slice(None)):
        self.fed.append(ids.shape)
        embed = self.weights["embed"].dequantize()
        mix = self.weights["mix"].dequantize()
        state, states = np.zeros((len(ids), embed.shape[1]), np.float32), []
        for t in range(ids.shape[1]):
            state = state / np.float32(2) + embed[ids[:, t]]
            states.append(state @ mix.T)
        return np.stack(states, 1)[:, keep]

    def logits(self, hidden):
        return hidden @ self.weights["head"].dequantize().T


def memory_model(seed=0, hidden=8, scale=1.0, **config):
    rng = np.random.default_rng(seed)
    config = Config(**config)

    def draw(*shape):
        return Stored((scale * rng.standard_normal(shape)).astype(np.float32))

    weights = {
        "embed": draw(config.vocab_size, hidden),
        "mix": draw(hidden, hidden),
        "head": draw(config.vocab_size, hidden),
    }
    return MemoryModel(weights, config)


def reference_logprobs(model, context):
    """Log-probabilities of the token after `context`, float64 (vocabulary,)."""
    embed, mix, head = (model.weights[name].dequantize().astype(np.float64) for name in ("embed", "mix", "head"))
    state = np.zeros(embed.shape[1])
    for token in context:
        state = state / 2 + embed[token]
    logits = head @ (mix @ state)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
