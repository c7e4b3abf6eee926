"""The forward pass, the same for every architecture (spec/forward.md).

Tensors are float32, (batch, tokens, …). A block is a mapping from role to layer; a role that an architecture does not
have is not in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np

from refquant.arrays import Float32
from refquant.models.activations import ACTIVATIONS
from refquant.models.attention import attend
from refquant.models.cache import Cache
from refquant.models.config import ModelConfig
from refquant.models.rope import Rope, rotate, rotations
from refquant.models.scratch import Scratch

_ROWS = 32  # rows of the MLP's inside that are activated together, so that they stay in a core's cache


class Layer(Protocol):
    """A linear layer or a norm."""

    def __call__(self, x: Float32, out: Float32) -> Float32:
        """x of shape (batch, tokens, in) to (batch, tokens, out): in `out` where the layer can, else a new array."""

    @property
    def width(self) -> int:
        """The last axis of what it gives."""


Block: TypeAlias = Mapping[str, Layer]


@dataclass(frozen=True)
class Run:
    """One pass over some tokens.

    Attributes:
        config: sizes and constants.
        first: the position of the first token given.
        start: the first token whose output is wanted, counted from the first given.
        stop: the token after the last wanted.
        cache: keys and values of the tokens before, to which these are added; None where there are none.
        scratch: memory for what lives within a block.
    """

    config: ModelConfig
    first: int
    start: int
    stop: int
    cache: Cache | None
    scratch: Scratch = field(default_factory=Scratch)


def run_blocks(x: Float32, blocks: Sequence[Block], run: Run) -> Float32:
    """Send embedded tokens, (batch, tokens, hidden), through every block; overwrites them.

    Returns:
        (batch, stop − start, hidden): the last block computes the wanted tokens alone.
    """
    for index, block in enumerate(blocks):
        start, stop = (run.start, run.stop) if index == len(blocks) - 1 else (0, x.shape[1])
        heads = _attention(x, index, block, start, stop, run)
        x = x[:, start:stop]  # (batch, wanted, hidden)
        x += _through(block, "o", "attention_post_norm", heads, run)
        x += _through(block, "down", "mlp_post_norm", _mlp(x, block, run), run)
    return x


def _apply(block: Block, role: str, x: Float32, run: Run) -> Float32:
    layer = block[role]
    return layer(x, run.scratch(role, (*x.shape[:-1], layer.width)))


def _through(block: Block, projection: str, norm: str, y: Float32, run: Run) -> Float32:
    """Back to the residual's width; some architectures norm what they add."""
    y = _apply(block, projection, y, run)
    return _apply(block, norm, y, run) if norm in block else y


def _attention(x: Float32, index: int, block: Block, start: int, stop: int, run: Run) -> Float32:
    """The heads' outputs for tokens start … stop − 1, side by side: (batch, stop − start, heads·head_dim)."""
    config, layer = run.config, run.config.layers[index]
    kv_heads, group, head_dim = config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim
    q, k, v = _project(_apply(block, "attention_norm", x, run), block, start, stop, run)
    q = q.reshape(*q.shape[:2], kv_heads, group, head_dim)  # (batch, wanted, kv, group, dim)
    k = k.reshape(*k.shape[:2], kv_heads, 1, head_dim)  # (batch, tokens, kv, 1, dim)
    v = v.reshape(*v.shape[:2], kv_heads, head_dim).swapaxes(1, 2)  # (batch, kv, tokens, dim)
    if "q_norm" in block:
        q, k = _apply(block, "q_norm", q, run), _apply(block, "k_norm", k, run)
    end = run.first + k.shape[1]
    q = _placed("placed q", q, layer.rope, run.first + start, end, run)  # (batch, kv, wanted, group, dim)
    k = _placed("placed k", k, layer.rope, run.first, end, run)[..., 0, :].swapaxes(2, 3)  # (batch, kv, dim, tokens)
    q *= np.float32(layer.attention_scale)
    if run.cache is not None:
        k, v = run.cache.put(index, k, v)  # all positions so far
    else:
        k = np.ascontiguousarray(k)  # a product reads keys faster than it transposes them
    seen = run.first + stop
    heads = attend(q, k[..., :seen], v[:, :, :seen], layer.window, config.attention_soft_cap)
    return heads.reshape(*heads.shape[:2], config.num_heads * head_dim)


def _project(x: Float32, block: Block, start: int, stop: int, run: Run) -> tuple[Float32, Float32, Float32]:
    """Queries of the wanted tokens, keys and values of all: each (batch, …, heads·head_dim)."""
    if "qkv" not in block:
        return _apply(block, "q", x[:, start:stop], run), _apply(block, "k", x, run), _apply(block, "v", x, run)
    fused = _apply(block, "qkv", x, run)  # (batch, tokens, (heads + 2·kv)·dim)
    queries = run.config.num_heads * run.config.head_dim
    keys = queries + run.config.num_kv_heads * run.config.head_dim
    return fused[:, start:stop, :queries], fused[..., queries:keys], fused[..., keys:]


def _placed(name: str, x: Float32, rope: Rope | None, first: int, end: int, run: Run) -> Float32:
    """Give heads their positions: (batch, tokens, kv, group, dim) to (batch, kv, tokens, group, dim).

    The first is at `first`; the sequence ends before `end`, and some scalings depend on how long it is.
    """
    batch, tokens, kv_heads, group, head_dim = x.shape
    placed = run.scratch(name, (batch, kv_heads, tokens, group, head_dim))
    if rope is None:
        placed[:] = x.swapaxes(1, 2)
    else:
        cos, sin = rotations(rope, first, first + tokens, end)
        rotate(x, cos, sin, out=placed.swapaxes(1, 2))
    return placed


def _mlp(x: Float32, block: Block, run: Run) -> Float32:
    """The inside of the MLP, (batch, tokens, intermediate): the activated gate times up, or up activated alone."""
    activate = ACTIVATIONS[run.config.activation]
    normed = _apply(block, "mlp_norm", x, run)
    if "gate_up" in block:
        gate, up = np.split(_apply(block, "gate_up", normed, run), 2, axis=-1)
    else:
        up = _apply(block, "up", normed, run)
        gate = _apply(block, "gate", normed, run) if "gate" in block else up
    for sequence in range(len(gate)):
        for row in range(0, gate.shape[1], _ROWS):
            some = sequence, slice(row, row + _ROWS)
            activate(gate[some])
            if gate is not up:
                gate[some] *= up[some]
    return gate
