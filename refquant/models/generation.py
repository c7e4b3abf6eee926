"""Text from a model, token by token, with the key/value cache."""

import operator
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from refquant.errors import ModelError, RefquantError
from refquant.models.model import Model
from refquant.models.sampling import Sampling, choose

GREEDY = Sampling()


def generate(
    model: Model,
    ids: npt.ArrayLike,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    eos_ids: frozenset[int] | None = None,
) -> Iterator[int]:
    """Continue a sequence of tokens.

    The arguments are checked at once; tokens are computed as they are asked for.

    Args:
        model: what continues.
        ids: the tokens so far, integers (tokens,), at least one.
        max_tokens: the most tokens to add, at least 1.
        sampling: how each token is chosen; greedy by default.
        seed: of NumPy's PCG64; the same seed and the same logits give the same tokens.
        eos_ids: tokens that end the text; None takes the tokenizer's, and none where the model has no tokenizer.

    Returns:
        An iterator of token ids. The last one is an EOS token, or the `max_tokens`-th, or the one that takes the last
        of the model's positions.

    Raises:
        RefquantError: no token to start from, an id beyond the vocabulary, a bad `max_tokens` or seed.
        ModelError: the prompt leaves no position free.
        NonFiniteError: NaN or +inf among the logits, when that token is asked for.
    """
    prompt = _check_prompt(ids, model)
    if max_tokens < 1:
        raise RefquantError(f"max_tokens {max_tokens} given; it must be at least 1")
    if seed < 0:
        raise RefquantError(f"seed {seed} given; it must be at least 0")
    if eos_ids is None:
        eos_ids = frozenset() if model.tokenizer is None else model.tokenizer.eos_ids
    length = min(prompt.size + operator.index(max_tokens), model.config.max_positions)
    return _tokens(model, prompt, length, sampling, np.random.default_rng(seed), eos_ids)


def finish_reason(tokens: Sequence[int], max_tokens: int, eos_ids: frozenset[int]) -> str:
    """Why a generation that gave these tokens ended: "eos", "max_tokens" or "max_positions"."""
    if tokens and tokens[-1] in eos_ids:
        return "eos"
    return "max_tokens" if len(tokens) == max_tokens else "max_positions"


def _check_prompt(ids: npt.ArrayLike, model: Model) -> npt.NDArray[np.int64]:
    prompt = np.asarray(ids)
    if prompt.ndim != 1 or prompt.size == 0:
        raise RefquantError(f"prompt of shape {prompt.shape} given; it must be a list of at least one token id")
    if prompt.dtype.kind not in "iu":
        raise RefquantError(f"prompt of dtype {prompt.dtype} given; token ids are integers")
    if prompt.min() < 0 or prompt.max() >= model.config.vocab_size:
        raise RefquantError(
            f"prompt: token ids {prompt.min()} … {prompt.max()} given; "
            f"the model's vocabulary has ids 0 … {model.config.vocab_size - 1}"
        )
    if prompt.size >= model.config.max_positions:
        raise ModelError(
            f"prompt of {prompt.size} tokens given; the model has {model.config.max_positions} positions, "
            "and at least one must be left: shorten the prompt"
        )
    return prompt.astype(np.int64)


def _tokens(
    model: Model,
    prompt: npt.NDArray[np.int64],
    length: int,
    sampling: Sampling,
    random: np.random.Generator,
    eos_ids: frozenset[int],
) -> Iterator[int]:
    cache = model.new_cache(1, length)
    step = prompt[None]  # (1, tokens): the prompt at first, then one token a step
    for _ in range(length - prompt.size):
        hidden = model.hidden(step, cache, keep=slice(-1, None))  # (1, 1, hidden)
        token = choose(model.logits(hidden)[0, 0], sampling, random)
        yield token
        if token in eos_ids:
            return
        step = np.array([[token]], np.int64)
