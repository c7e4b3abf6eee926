"""A model's configuration: config.json, checked and made explicit for every layer."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refquant.errors import ModelError
from refquant.models.activations import ACTIVATIONS
from refquant.models.architectures import FULL, SLIDING, Architecture, find_architecture, not_supported
from refquant.models.rope import Rope
from refquant.models.rope_config import read_ropes
from refquant.models.values import Values

# A value here changes what a model computes, and no supported architecture computes it.
_REFUSED = {
    "quantization_config": "the checkpoint is quantized; dequantize it to float first",
    "use_bidirectional_attention": "attention is causal",
    "add_cross_attention": "there is no encoder to attend to",
    "num_experts": "mixtures of experts are not supported",
    "num_local_experts": "mixtures of experts are not supported",
}


@dataclass(frozen=True)
class Layer:
    """What may differ from one layer to the next.

    Attributes:
        window: how many positions a query sees, its own among them; None for all before it.
        rope: the rotary embedding; None where positions are learned.
        attention_scale: the factor of the query-key products.
    """

    window: int | None
    rope: Rope | None
    attention_scale: float


@dataclass(frozen=True)
class ModelConfig:
    """The sizes and constants of a model.

    Attributes:
        architecture: its name in config.json (`LlamaForCausalLM`).
        vocab_size: rows of the token embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the MLP.
        num_layers: number of blocks.
        num_heads: query heads of a layer.
        num_kv_heads: key and value heads; each serves num_heads / num_kv_heads query heads.
        head_dim: width of a head.
        max_positions: the length that the model is configured for.
        norm_epsilon: added to the mean square (or variance) in every norm.
        activation: the MLP's non-linearity.
        tied: the head is the token embedding, if the checkpoint has no other.
        embedding_scale: factor of the token embedding.
        attention_soft_cap: c in c·tanh(score / c), or None.
        final_soft_cap: the same for logits.
        biased: the roles of linear layers that have a bias (and of norms, for GPT-2).
        layers: window, rotary embedding and scale of every layer.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm_epsilon: float
    activation: str
    tied: bool
    embedding_scale: float
    attention_soft_cap: float | None
    final_soft_cap: float | None
    biased: frozenset[str]
    layers: tuple[Layer, ...]


def read_config(path: Path) -> ModelConfig:
    """The configuration in a config.json.

    Raises:
        ModelError: the file is not a JSON object, the architecture is not supported, a value is missing, of the wrong
            kind, not understood, or contradicts another; the message names file, key and value.
        OSError: the file cannot be read.
    """
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # a ValueError is also an integer of thousands of digits
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ModelError(f"{path}: a JSON {type(raw).__name__} given; a configuration is an object")
    try:
        return parse_config(raw)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a decoded config.json; see `read_config`."""
    architecture = _architecture(raw)
    values = Values(raw, architecture.keys, architecture.defaults)
    for key, reason in _REFUSED.items():
        if raw.get(key):
            raise ModelError(f"{key} is set: {reason}")
    if not architecture.attention_soft_cap and raw.get("attn_logit_softcapping"):
        raise ModelError(f"attn_logit_softcapping is set; {architecture.name} does not cap attention scores")
    hidden_size = values.integer("hidden_size")
    num_layers = values.integer("num_hidden_layers")
    num_heads = values.integer("num_attention_heads")
    num_kv_heads = values.optional_integer("num_key_value_heads") or num_heads
    head_dim = values.optional_integer("head_dim") or _divide(hidden_size, num_heads, "hidden_size", "heads")
    _divide(num_heads, num_kv_heads, "num_attention_heads", "key/value heads")
    activation = values.text("activation")
    if activation not in ACTIVATIONS:
        raise not_supported("activation", activation, ACTIVATIONS)
    intermediate_size = values.optional_integer("intermediate_size")
    if intermediate_size is None:
        if architecture.positions is None:
            raise ModelError("intermediate_size is missing")
        intermediate_size = 4 * hidden_size  # what GPT-2 means by no n_inner
    return ModelConfig(
        architecture=architecture.name,
        vocab_size=values.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=values.integer("max_position_embeddings"),
        norm_epsilon=values.real("norm_epsilon"),
        activation=activation,
        tied=values.boolean("tie_word_embeddings"),
        embedding_scale=math.sqrt(hidden_size) if architecture.scales_embedding else 1.0,
        attention_soft_cap=values.optional_real("attn_logit_softcapping") if architecture.attention_soft_cap else None,
        final_soft_cap=values.optional_real("final_logit_softcapping") if architecture.final_soft_cap else None,
        biased=_biased(architecture, values),
        layers=_layers(architecture, values, num_layers, head_dim),
    )


def _architecture(raw: Mapping[str, Any]) -> Architecture:
    names = raw.get("architectures") or [raw.get("model_type")]
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise ModelError(f"architectures is {names!r}; it must name one architecture")
    return find_architecture(names[0])


def _divide(total: int, parts: int, total_name: str, part_name: str) -> int:
    if total % parts:
        raise ModelError(f"{total_name} {total} is not a multiple of the {parts} {part_name}")
    return total // parts


def _biased(architecture: Architecture, values: Values) -> frozenset[str]:
    optional = [role for key, roles in architecture.bias_options.items() if values.boolean(key) for role in roles]
    return frozenset(architecture.biased) | frozenset(optional)


def _layers(architecture: Architecture, values: Values, num_layers: int, head_dim: int) -> tuple[Layer, ...]:
    window = _window(architecture, values)
    types = _layer_types(architecture, values, num_layers, window)
    ropes = {} if architecture.positions else read_ropes(architecture, values, head_dim, set(types))
    scale = _attention_scale(values, head_dim)
    by_depth = values.boolean("scale_attn_by_inverse_layer_idx")
    return tuple(
        Layer(
            window=window if kind == SLIDING else None,
            rope=ropes.get(kind),
            attention_scale=scale / (i + 1) if by_depth else scale,
        )
        for i, kind in enumerate(types)
    )


def _attention_scale(values: Values, head_dim: int) -> float:
    if not values.boolean("scale_attn_weights"):
        return 1.0
    width = values.optional_real("query_pre_attn_scalar") or head_dim
    return float(width**-0.5)


def _window(architecture: Architecture, values: Values) -> int | None:
    if architecture.windows == "never" or not values.boolean("use_sliding_window"):
        return None
    return values.optional_integer("sliding_window")


def _layer_types(architecture: Architecture, values: Values, num_layers: int, window: int | None) -> list[str]:
    """The attention of every layer: as the config lists it, or by the architecture's rule."""
    slides: dict[str, Callable[[int], bool]] = {
        "never": lambda i: False,
        "always": lambda i: True,
        "even layers": lambda i: i % 2 == 0,
        "all but every nth layer": lambda i: (i + 1) % values.integer("sliding_window_pattern") != 0,
        "from max_window_layers": lambda i: i >= values.integer("max_window_layers"),
    }
    rule = slides[architecture.windows]
    types = [SLIDING if window and rule(i) else FULL for i in range(num_layers)]
    listed = values.get("layer_types")
    if listed is None:
        return types
    if not isinstance(listed, list) or len(listed) != num_layers:
        raise ModelError(f"layer_types lists {listed!r}; it must name the attention of each of the {num_layers} layers")
    for kind in listed:
        if kind not in (FULL, SLIDING):
            raise not_supported("layer type", kind, {FULL: None, SLIDING: None})
    if SLIDING in listed and window is None:
        raise ModelError(f"layer_types has {SLIDING!r}, and there is no sliding_window")
    if listed != types and not architecture.lists_layer_types:
        raise ModelError(f"layer_types {listed!r} contradicts {architecture.name}, whose layers are {types!r}")
    return listed
