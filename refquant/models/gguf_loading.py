"""A GGUF file to a Model: its tensors in the order of rows that the forward pass expects (spec/gguf_models.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refquant.arrays import Float32, Int64, Shape
from refquant.checkpoints.gguf import GgufCheckpoint, GgufTensor
from refquant.errors import ModelError
from refquant.models.config import ModelConfig
from refquant.models.gguf_config import read_config
from refquant.models.model import Model
from refquant.models.weights import Names, Weight, bind, find_names

if TYPE_CHECKING:
    from refquant.models.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Reordered:
    """A tensor whose rows are presented in another order than they are stored in.

    Attributes:
        stored: the tensor, or a bias.
        order: the stored row of each presented one, (rows,).
    """

    stored: Weight
    order: Int64

    @property
    def shape(self) -> Shape:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def dequantize(self) -> Float32:
        return self.stored.dequantize()[self.order]


def load_gguf(checkpoint: GgufCheckpoint) -> Model:
    """The model in an opened GGUF file; weights stay in the file as they are, and are read when they are used.

    Raises:
        ModelError: an architecture or a value that is not supported, a key or tensor that is missing, a tensor of
            another shape than the keys say, or one left unused; the message names it.
        RefquantError: a tensor whose type refquant does not decode.

    Source: spec/gguf_models.md.
    """
    stored = {name: _weight(tensor) for name, tensor in checkpoint.tensors.items()}
    try:
        architecture, config = read_config(checkpoint.metadata, stored)
        names = find_names(architecture, config, stored)
        weights = bind(names, stored)
    except ModelError as error:
        raise ModelError(f"{checkpoint.path}: {error}") from None
    if architecture.neighbouring_pairs:
        weights |= _pairs_apart(names, config, weights)
    return Model(path=checkpoint.path, config=config, tokenizer=_tokenizer(checkpoint), weights=weights, names=names)


def _weight(tensor: GgufTensor) -> Weight:
    return tensor.quantized() if tensor.type.block_size > 1 else tensor


def _pairs_apart(names: Names, config: ModelConfig, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Queries and keys with all pairs' first rows before their second, head by head, as `rotate` takes them."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    q, k, v = order_of_halves(queries, config.head_dim), order_of_halves(keys, config.head_dim), np.arange(keys)
    orders: dict[str, Int64] = {"q": q, "k": k, "qkv": np.concatenate([q, queries + k, queries + keys + v])}
    reordered: dict[str, Weight] = {}
    for layer in range(config.num_layers):
        for role, stem in names.block(layer).items():
            for name in (f"{stem}.weight", f"{stem}.bias"):
                if role in orders and name in weights:
                    reordered[name] = Reordered(weights[name], orders[role])
    return reordered


def order_of_halves(rows: int, head_dim: int) -> Int64:
    """For each row of heads in halves, where it is in heads of neighbouring pairs."""
    pairs = np.arange(rows).reshape(-1, head_dim // 2, 2)  # (heads, pairs, 2)
    return pairs.swapaxes(1, 2).reshape(-1)  # (heads · 2 · pairs,)


def _tokenizer(checkpoint: GgufCheckpoint) -> "Tokenizer | None":
    model = checkpoint.metadata.get("tokenizer.ggml.model")
    if model is None or (isinstance(model, str) and model in ("no_vocab", "none")):
        return None
    from refquant.models.gguf_tokenizer import from_metadata

    return from_metadata(checkpoint.metadata, str(checkpoint.path))
