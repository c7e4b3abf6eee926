"""The forward pass, the same for every architecture (spec/forward.md).

Tensors are float32, (batch, tokens, …). A block is a mapping from role to layer; a role that an architecture does not
have is not in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refquant.arrays import Float32
from refquant.models.activations import ACTIVATIONS
from refquant.models.attention import attend
from refquant.models.cache import Cache
from refquant.models.config import Layer, ModelConfig
from refquant.models.rope import rotate, rotations

Block: TypeAlias = Mapping[str, Callable[[Float32], Float32]]


@dataclass(frozen=True)
class Span:
    """Which tokens a pass is given and whose output it returns.

    Attributes:
        first: the position of the first token given.
        start: the first token whose output is wanted, counted from the first given.
        stop: the token after the last wanted.
    """

    first: int
    start: int
    stop: int


def run_blocks(x: Float32, config: ModelConfig, blocks: Sequence[Block], span: Span, cache: Cache | None) -> Float32:
    """Send embedded tokens through every block; the last one computes the wanted tokens alone.

    Args:
        x: (batch, tokens, hidden); overwritten.
        config: sizes and constants.
        blocks: the layers of each block.
        span: the tokens' positions, and which are wanted.
        cache: keys and values of the tokens before, to which these are added; None where there are none before.

    Returns:
        (batch, stop − start, hidden).
    """
    everything = Span(span.first, 0, x.shape[1])
    for i, block in enumerate(blocks):
        wanted = span if i == len(blocks) - 1 else everything
        heads = _attention(x, config, i, block, wanted, cache)
        x = x[:, wanted.start : wanted.stop]  # (batch, wanted, hidden)
        x += _through(block, "o", "attention_post_norm", heads)
        x += _through(block, "down", "mlp_post_norm", _gated(block["mlp_norm"](x), config, block))
    return x


def _through(block: Block, projection: str, norm: str, y: Float32) -> Float32:
    y = block[projection](y)
    return block[norm](y) if norm in block else y


def _attention(x: Float32, config: ModelConfig, index: int, block: Block, span: Span, cache: Cache | None) -> Float32:
    """The heads' outputs for the wanted tokens, side by side: (batch, wanted, heads·head_dim)."""
    layer, kv_heads, head_dim = config.layers[index], config.num_kv_heads, config.head_dim
    q, k, v = _project(block["attention_norm"](x), config, block, span)
    q = q.reshape(*q.shape[:2], kv_heads, config.num_heads // kv_heads, head_dim)  # (batch, wanted, kv, group, dim)
    k = k.reshape(*k.shape[:2], kv_heads, 1, head_dim)  # (batch, tokens, kv, 1, dim)
    v = v.reshape(*v.shape[:2], kv_heads, head_dim).swapaxes(1, 2)  # (batch, kv, tokens, dim)
    if "q_norm" in block:
        q, k = block["q_norm"](q), block["k_norm"](k)
    end = span.first + k.shape[1]
    q = _place(q, layer, span.first + span.start, end)  # (batch, kv, wanted, group, dim)
    k = _place(k, layer, span.first, end)[..., 0, :]  # (batch, kv, tokens, dim)
    q *= np.float32(layer.attention_scale)
    if cache is not None:
        k, v = cache.put(index, k, v)  # (batch, kv, positions so far, dim)
    visible = span.first + span.stop
    heads = attend(q, k[:, :, :visible], v[:, :, :visible], layer.window, config.attention_soft_cap)
    return heads.reshape(*heads.shape[:2], config.num_heads * head_dim)


def _project(x: Float32, config: ModelConfig, block: Block, span: Span) -> tuple[Float32, Float32, Float32]:
    """Queries of the wanted tokens, keys and values of all: each (batch, …, heads·head_dim)."""
    wanted = slice(span.start, span.stop)
    if "qkv" not in block:
        return block["q"](x[:, wanted]), block["k"](x), block["v"](x)
    fused = block["qkv"](x)  # (batch, tokens, (heads + 2·kv)·dim)
    queries = config.num_heads * config.head_dim
    keys = queries + config.num_kv_heads * config.head_dim
    return fused[:, wanted, :queries], fused[..., queries:keys], fused[..., keys:]


def _place(x: Float32, layer: Layer, first: int, end: int) -> Float32:
    """Give each head its position: (batch, tokens, kv, group, dim) to a new (batch, kv, tokens, group, dim).

    The sequence ends before `end`; some scalings depend on how long it is.
    """
    placed = np.empty((x.shape[0], x.shape[2], x.shape[1], *x.shape[3:]), np.float32)
    if layer.rope is None:
        placed[:] = x.swapaxes(1, 2)
    else:
        cos, sin = rotations(layer.rope, first, first + x.shape[1], end)
        rotate(x, cos, sin, out=placed.swapaxes(1, 2))
    return placed


def _gated(x: Float32, config: ModelConfig, block: Block) -> Float32:
    """The inside of the MLP: the activated gate times up; without a gate, up is what is activated."""
    activate = ACTIVATIONS[config.activation]
    if "gate_up" in block:
        fused = block["gate_up"](x)  # (batch, tokens, 2·intermediate)
        gate, up = fused[..., : config.intermediate_size], fused[..., config.intermediate_size :]
    elif "gate" in block:
        gate, up = block["gate"](x), block["up"](x)
    else:
        return activate(block["up"](x))
    activated = activate(gate)
    activated *= up
    return activated  # (batch, tokens, intermediate)
