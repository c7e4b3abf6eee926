"""A model: its configuration, weights and tokenizer, and the two halves of the forward pass."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32
from refquant.errors import RefquantError
from refquant.models.architectures import not_supported
from refquant.models.attention import cap
from refquant.models.cache import Cache
from refquant.models.config import ModelConfig
from refquant.models.forward import Block, Run, run_blocks
from refquant.models.threads import spread
from refquant.models.weights import Dense, Linear, Names, Norm, Weight, check_shape, rows_of

if TYPE_CHECKING:
    from refquant.models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Model:
    """A language model that can be run.

    Attributes:
        path: the folder or GGUF file that it was loaded from.
        config: sizes and constants.
        tokenizer: text to ids and back; None where there is none.
        weights: every tensor that the forward pass uses, under the checkpoint's own names; linear layers are
            (out, in), also where the checkpoint stores them transposed.
        names: which tensor is which.
    """

    path: Path
    config: ModelConfig
    tokenizer: "Tokenizer | None"
    weights: Mapping[str, Weight] = field(repr=False)
    names: Names = field(repr=False)

    @property
    def linear_names(self) -> tuple[str, ...]:
        """The matrices of linear layers inside the blocks: what quantization replaces by default."""
        return self.names.linear

    @property
    def embedding_names(self) -> tuple[str, ...]:
        """The token embedding and, where it is not the same tensor, the head."""
        return tuple(dict.fromkeys((self.names.embedding, self.names.head)))

    @property
    def nbytes(self) -> int:
        """Bytes that the weights are stored in."""
        return sum(weight.nbytes for weight in self.weights.values())

    def with_weights(self, weights: Mapping[str, Weight]) -> "Model":
        """The same model with some weights replaced.

        Args:
            weights: quantized tensors or other weights, by name.

        Raises:
            ModelError: a name that the model does not have, or another shape than its tensor's.
        """
        for name, weight in weights.items():
            if name not in self.weights:
                raise not_supported("weight", name, self.weights)
            check_shape(name, weight.shape, self.weights[name].shape)
        return dataclasses.replace(self, weights={**self.weights, **weights})

    def in_memory(self) -> "Model":
        """The same model with every weight as a float32 array: more memory, and nothing widened again for each call."""
        return self.with_weights({name: Dense(weight.dequantize()) for name, weight in self.weights.items()})

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty key/value cache for `batch` sequences of up to `length` tokens."""
        return Cache(self.config, batch, length)

    def hidden(self, ids: npt.ArrayLike, cache: Cache | None = None, keep: slice = slice(None)) -> Float32:
        """The output of the final norm.

        Args:
            ids: token ids, integers of shape (batch, tokens). Without a cache they start at position 0.
            cache: keys and values of the tokens before these, which then join them.
            keep: the contiguous range of tokens whose output is wanted; the last block computes no others.

        Returns:
            float32 (batch, kept tokens, hidden). No tokens, or none kept, give an empty array.

        Raises:
            RefquantError: ids that are no integers or outside the vocabulary, a cache without room, a `keep` with a
                step, or more positions than a learned position embedding has.
        """
        tokens = self._checked(ids)
        first = 0 if cache is None else cache.used
        if cache is not None:
            cache.check_room(*tokens.shape)
        start, stop, step = keep.indices(tokens.shape[1])
        if step != 1:
            raise RefquantError(f"keep {keep} has a step; a contiguous range of tokens is needed")
        if tokens.size == 0 or (start >= stop and cache is None):
            return np.empty((tokens.shape[0], max(stop - start, 0), self.config.hidden_size), np.float32)
        blocks, final_norm = self._blocks, self._final_norm

        def run(some: slice) -> Float32:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # weights may be anything: IEEE rules
                embedded = self._embed(tokens[some], first)
                x = run_blocks(embedded, blocks, Run(self.config, first, start, max(start, stop), cache))
                return final_norm(x, np.empty_like(x))

        if cache is None:
            return np.concatenate(spread(run, len(tokens)))
        normed = run(slice(None))
        cache.used += tokens.shape[1]
        return normed

    def logits(self, hidden: Float32) -> Float32:
        """The head: hidden states (..., hidden) to float32 logits (..., vocab), capped where the architecture does."""
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self._head(hidden, np.empty((*hidden.shape[:-1], self.config.vocab_size), np.float32))
            if self.config.final_soft_cap is not None:
                cap(logits, self.config.final_soft_cap)
        return logits

    def _checked(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        array = np.asarray(ids)
        if array.ndim != 2 or (array.dtype.kind not in "iu" and array.size):
            raise RefquantError(f"ids: {array.dtype} of shape {array.shape} given; integers (batch, tokens) are needed")
        outside = (array < 0) | (array >= self.config.vocab_size)
        if outside.any():
            index = tuple(int(i) for i in np.argwhere(outside)[0])
            raise RefquantError(
                f"ids: {array[index]} at index {index}; the vocabulary has ids 0 … {self.config.vocab_size - 1}: "
                "was the text encoded with another model's tokenizer?"
            )
        return array.astype(np.int64)

    def _embed(self, ids: npt.NDArray[np.int64], first: int) -> Float32:
        x = rows_of(self.weights[self.names.embedding], ids)  # (batch, tokens, hidden), a copy
        if self.config.embedding_scale != 1:
            x *= np.float32(self.config.embedding_scale)
        if self.names.positions is not None:
            end = first + ids.shape[1]
            if end > self.config.max_positions:
                raise RefquantError(
                    f"{end} positions needed; {self.names.positions} has {self.config.max_positions}: give fewer tokens"
                )
            x += self.weights[self.names.positions].dequantize()[first:end]
        return x

    @cached_property
    def _blocks(self) -> list[Block]:
        return [self._block(self.names.block(layer)) for layer in range(self.config.num_layers)]

    def _block(self, stems: Mapping[str, str]) -> Block:
        return {role: self._norm(s) if role.endswith("norm") else self._linear(s) for role, s in stems.items()}

    @cached_property
    def _final_norm(self) -> Norm:
        return self._norm(self.names.final_norm)

    @cached_property
    def _head(self) -> Linear:
        return Linear(self.weights[self.names.head])

    def _linear(self, stem: str) -> Linear:
        return Linear(self.weights[f"{stem}.weight"], self._bias(stem))

    def _norm(self, stem: str) -> Norm:
        weight = self.weights[f"{stem}.weight"].dequantize()
        offset = self.names.architecture.norm_offset
        return Norm(weight + np.float32(offset) if offset else weight, self._bias(stem), self.config.norm_epsilon)

    def _bias(self, stem: str) -> Float32 | None:
        bias = self.weights.get(f"{stem}.bias")
        return None if bias is None else bias.dequantize()
