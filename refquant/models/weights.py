"""The tensors of a model: which there must be, their shapes, and how they become the layers of a block."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from refquant.arrays import Float32, Int64, Shape
from refquant.errors import ModelError
from refquant.formats.base import QuantizedTensor
from refquant.formats.ggml import GgmlFormat
from refquant.models.architectures import Architecture
from refquant.models.config import ModelConfig


class Weight(Protocol):
    """What a model's tensor can be: a tensor of a checkpoint, a quantized tensor, an array in memory."""

    @property
    def shape(self) -> Shape:
        """Its shape."""

    @property
    def nbytes(self) -> int:
        """Bytes that it is stored in."""

    def dequantize(self) -> Float32:
        """Its values in float32."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A float32 array in memory as a weight."""

    array: Float32

    @property
    def shape(self) -> Shape:
        return self.array.shape

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def dequantize(self) -> Float32:
        return self.array


@dataclass(frozen=True, eq=False)
class Transposed:
    """A matrix stored as (in, out), presented as (out, in): GPT-2's linear layers."""

    stored: Weight

    @property
    def shape(self) -> Shape:
        return self.stored.shape[::-1]

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def dequantize(self) -> Float32:
        return self.stored.dequantize().T


@dataclass(eq=False)
class Wrapped:
    """A weight that stands in for another one, to do something of its own in products.

    Attributes:
        weight: the one whose values it has.
    """

    weight: Weight

    @property
    def shape(self) -> Shape:
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def dequantize(self) -> Float32:
        return self.weight.dequantize()


@runtime_checkable
class OwnProduct(Protocol):
    """A weight that is not simply dequantized for a product: a quantized tensor, or one that watches its input."""

    def linear(self, x: Float32) -> Float32:
        """x of shape (..., in) to (..., out)."""


def product(x: Float32, weight: Weight, out: Float32 | None = None) -> Float32:
    """`x @ weight.T`, (..., in) to (..., out), in `out` unless the weight has its own product."""
    if isinstance(weight, OwnProduct):
        return weight.linear(x)
    y: Float32 = np.matmul(x, weight.dequantize().T, out=out)
    return y


def rows_of(weight: Weight, rows: Int64) -> Float32:
    """Some rows of a matrix (…, n) for row numbers (…); of a matrix in ggml's blocks no others are widened."""
    if not isinstance(weight, QuantizedTensor) or not isinstance(weight.format, GgmlFormat):
        return weight.dequantize()[rows]
    used, places = np.unique(rows, return_inverse=True)
    some = QuantizedTensor(weight.format, (len(used), *weight.shape[1:]), {"blocks": weight.parts["blocks"][used]})
    return some.dequantize()[places.reshape(rows.shape)]


@dataclass(frozen=True)
class Linear:
    """A linear layer; its weight is widened to float32 when used and dropped after."""

    weight: Weight
    bias: Float32 | None = None

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def __call__(self, x: Float32, out: Float32) -> Float32:
        """x of shape (..., in) to (..., out), in `out` unless the weight has its own product."""
        y = product(x, self.weight, out)
        if self.bias is not None:
            y += self.bias
        return y


@dataclass(frozen=True)
class Norm:
    """A norm over the last axis: root mean square, or mean and variance where there is a bias."""

    weight: Float32
    bias: Float32 | None
    epsilon: float

    @property
    def width(self) -> int:
        return len(self.weight)

    def __call__(self, x: Float32, out: Float32) -> Float32:
        """x normed, in `out`."""
        if self.bias is not None:
            x = x - x.mean(axis=-1, keepdims=True)
        np.square(x, out=out)
        scale = 1 / np.sqrt(out.mean(axis=-1, keepdims=True) + np.float32(self.epsilon))  # (..., 1)
        np.multiply(x, scale, out=out)
        out *= self.weight
        if self.bias is not None:
            out += self.bias
        return out


# The shape of every role's weight; a bias has its first axis.
_SHAPES: dict[str, Callable[[ModelConfig], Shape]] = {
    "attention_norm": lambda c: (c.hidden_size,),
    "q": lambda c: (c.num_heads * c.head_dim, c.hidden_size),
    "k": lambda c: (c.num_kv_heads * c.head_dim, c.hidden_size),
    "v": lambda c: (c.num_kv_heads * c.head_dim, c.hidden_size),
    "qkv": lambda c: ((c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.hidden_size),
    "q_norm": lambda c: (c.head_dim,),
    "k_norm": lambda c: (c.head_dim,),
    "o": lambda c: (c.hidden_size, c.num_heads * c.head_dim),
    "attention_post_norm": lambda c: (c.hidden_size,),
    "mlp_norm": lambda c: (c.hidden_size,),
    "gate": lambda c: (c.intermediate_size, c.hidden_size),
    "up": lambda c: (c.intermediate_size, c.hidden_size),
    "gate_up": lambda c: (2 * c.intermediate_size, c.hidden_size),
    "down": lambda c: (c.hidden_size, c.intermediate_size),
    "mlp_post_norm": lambda c: (c.hidden_size,),
}


@dataclass(frozen=True)
class Names:
    """The names of a model's tensors in its checkpoint.

    Attributes:
        prefix: what stands before every name but the head's.
        head: the head's name; the embedding's where they are tied.
    """

    architecture: Architecture
    config: ModelConfig
    prefix: str
    head: str

    @property
    def embedding(self) -> str:
        """The token embedding."""
        return f"{self.prefix}{self.architecture.embedding}.weight"

    @property
    def positions(self) -> str | None:
        """The learned position embedding."""
        return None if self.architecture.positions is None else f"{self.prefix}{self.architecture.positions}.weight"

    @property
    def final_norm(self) -> str:
        """The stem of the norm before the head."""
        return self.prefix + self.architecture.final_norm

    def block(self, layer: int) -> dict[str, str]:
        """The stem of every role in a block."""
        before = self.prefix + self.architecture.blocks.format(layer)
        return {role: before + stem for role, stem in self.architecture.block.items()}

    @property
    def linear(self) -> tuple[str, ...]:
        """The matrices of the linear layers inside the blocks, in the order they are stored."""
        stems = (self.block(layer) for layer in range(self.config.num_layers))
        return tuple(f"{stem}.weight" for block in stems for role, stem in block.items() if not role.endswith("norm"))

    def shapes(self) -> dict[str, Shape]:
        """The shape of every tensor, as presented."""
        config = self.config
        shapes: dict[str, Shape] = {self.embedding: (config.vocab_size, config.hidden_size)}
        shapes[self.head] = shapes[self.embedding]
        if self.positions is not None:
            shapes[self.positions] = (config.max_positions, config.hidden_size)
        for layer in range(config.num_layers):
            for role, stem in self.block(layer).items():
                shapes[f"{stem}.weight"] = shape = _SHAPES[role](config)
                if role in config.biased:
                    shapes[f"{stem}.bias"] = shape[:1]
        shapes[f"{self.final_norm}.weight"] = (config.hidden_size,)
        if self.architecture.norm == "layer":
            shapes[f"{self.final_norm}.bias"] = (config.hidden_size,)
        return shapes


def find_names(architecture: Architecture, config: ModelConfig, stored: Mapping[str, Any]) -> Names:
    """How this checkpoint names the tensors: with the architecture's prefix or, of a bare model, without.

    Raises:
        ModelError: neither embedding is there, or a head contradicts `tie_word_embeddings`.
    """
    candidates = {f"{prefix}{architecture.embedding}.weight": prefix for prefix in (architecture.prefix, "")}
    embedding = next((name for name in candidates if name in stored), None)
    if embedding is None:
        raise _missing(next(iter(candidates)), stored)
    head = f"{architecture.head}.weight"
    tied = head not in stored
    if config.tied and not tied:
        if not np.array_equal(stored[head].numpy(), stored[embedding].numpy()):
            raise ModelError(f"tie_word_embeddings is true, but {head} differs from {embedding}: set it to false")
        tied = True
    return Names(architecture, config, candidates[embedding], embedding if tied else head)


def bind(names: Names, stored: Mapping[str, Weight]) -> dict[str, Weight]:
    """The checkpoint's tensors that the model uses, under the checkpoint's own names.

    Raises:
        ModelError: a tensor is missing, has another shape than the configuration says, or is one that the forward
            pass would leave unused (which would mean computing another model).
    """
    in_out = set(names.linear) if names.architecture.stored_in_out else set()
    weights: dict[str, Weight] = {}
    for name, shape in names.shapes().items():
        if name not in stored:
            raise _missing(name, stored)
        weight = Transposed(stored[name]) if name in in_out else stored[name]
        check_shape(name, weight.shape, shape)
        weights[name] = weight
    head, ignored = f"{names.architecture.head}.weight", names.architecture.ignored
    unused = [n for n in stored if n not in weights and n != head and not n.endswith(ignored)]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise ModelError(
            f"{', '.join(unused[:3])}{more}: {names.architecture.name} with this configuration uses no such tensor"
        )
    return weights


def check_shape(name: str, given: Shape, expected: Shape) -> None:
    """Raise unless a tensor has the shape that the configuration says."""
    if tuple(given) != expected:
        raise ModelError(f"{name}: shape {tuple(given)} given; the configuration says {expected}")


def _missing(name: str, stored: Iterable[str]) -> ModelError:
    names = list(stored)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"it has {', '.join(near)}" if near else f"none of its {len(names)} tensors is called alike"
    return ModelError(f"the checkpoint lacks {name}; {hint}")
