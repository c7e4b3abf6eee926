"""A model's configuration from GGUF metadata (spec/gguf_models.md, section 2)."""

import math
from collections.abc import Mapping, Sized

import numpy as np

from refquant.errors import ModelError
from refquant.models.architectures import FULL, SLIDING, Architecture
from refquant.models.config import Layer, ModelConfig
from refquant.models.gguf_architectures import find_gguf_architecture, with_projections
from refquant.models.gguf_keys import Keys
from refquant.models.gguf_rope import read_ropes
from refquant.models.weights import Weight

# Keys that change what a model computes: the value that leaves it as it is, and what any other asks for.
_REFUSED: dict[str, tuple[object, str]] = {
    "expert_count": (0, "mixtures of experts are not supported"),
    "nextn_predict_layers": (0, "layers that predict later tokens are not supported"),
    "attention.causal": (True, "attention is causal"),
}
# Gemma's 27B models scale scores as if the heads filled the hidden size, and no key says so; llama.cpp knows them by
# their number of layers. Source: src/models/gemma2.cpp, gemma3.cpp.
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}


def read_config(metadata: Mapping[str, object], stored: Mapping[str, Weight]) -> tuple[Architecture, ModelConfig]:
    """The architecture, under GGUF's names, and the configuration of a file.

    Args:
        metadata: the file's keys; arrays of numbers as NumPy arrays.
        stored: the file's tensors; they show which biases there are, and whether projections are fused.

    Raises:
        ModelError: the architecture is not supported, a key is missing, of the wrong kind, or contradicts another key
            or the tensors.
    """
    name = metadata.get("general.architecture")
    architecture = find_gguf_architecture(name)
    first = architecture.blocks.format(0)
    in_block = frozenset(tensor.removeprefix(first) for tensor in stored if tensor.startswith(first))
    architecture = with_projections(architecture, in_block)
    keys = Keys(metadata, str(name), architecture.defaults)
    for key, (neutral, reason) in _REFUSED.items():
        keys.refuse(key, neutral, reason)
    hidden_size, num_heads = keys.integer("embedding_length"), keys.integer("attention.head_count")
    num_layers, head_dim = _num_layers(keys, stored), _head_dim(keys, hidden_size, num_heads)
    num_kv_heads = keys.integer("attention.head_count_kv", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{keys.key('attention.head_count')} {num_heads} is not a multiple of {num_kv_heads} kv heads")
    epsilon = "layer_norm_epsilon" if architecture.norm == "layer" else "layer_norm_rms_epsilon"
    return architecture, ModelConfig(
        architecture=architecture.name,
        vocab_size=_vocab_size(keys, stored),
        hidden_size=hidden_size,
        intermediate_size=keys.integer("feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=keys.integer("context_length"),
        norm_epsilon=keys.real(f"attention.{epsilon}"),
        activation=str(architecture.defaults["activation"]),
        tied=False,  # the head is the embedding where the file has no other
        embedding_scale=math.sqrt(hidden_size) if architecture.scales_embedding else 1.0,
        attention_soft_cap=keys.optional_real("attn_logit_softcapping") if architecture.attention_soft_cap else None,
        final_soft_cap=keys.optional_real("final_logit_softcapping") if architecture.final_soft_cap else None,
        biased=_biased(architecture, in_block),
        layers=_layers(architecture, keys, stored, num_layers, head_dim, _score_width(keys, hidden_size, num_heads)),
    )


def _num_layers(keys: Keys, stored: Sized) -> int:
    count = keys.integer("block_count")
    if count > len(stored):
        raise ModelError(f"{keys.key('block_count')} is {count}; the file has {len(stored)} tensors in all")
    return count


def _vocab_size(keys: Keys, stored: Mapping[str, Weight]) -> int:
    """Tokens, as the tokenizer lists them, a key says, or the embedding has rows."""
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, Sized) and len(tokens):
        return len(tokens)
    embedding = stored.get("token_embd.weight")
    return keys.integer("vocab_size", embedding.shape[0] if embedding is not None and embedding.shape else None)


def _head_dim(keys: Keys, hidden_size: int, num_heads: int) -> int:
    given = keys.optional_integer("attention.key_length")
    if given is None and hidden_size % num_heads:
        raise ModelError(f"{keys.key('embedding_length')} {hidden_size} is not a multiple of the {num_heads} heads")
    head_dim = given or hidden_size // num_heads
    for key in ("attention.value_length", "attention.key_length_swa", "attention.value_length_swa"):
        default = hidden_size // num_heads if key == "attention.value_length" else head_dim
        width = keys.integer(key, default)
        if width != head_dim:
            raise ModelError(f"{keys.key(key)} is {width}; keys are {head_dim} wide, and all heads must be alike")
    return head_dim


def _score_width(keys: Keys, hidden_size: int, num_heads: int) -> int | None:
    """The width whose square root divides scores, where it is not the head's."""
    of_27b = _LAYERS_OF_27B.get(keys.prefix) == keys.integer("block_count")
    return hidden_size // num_heads if of_27b else None


def _biased(architecture: Architecture, in_block: frozenset[str]) -> frozenset[str]:
    """Roles that the file has a bias for; what looks like a norm's bias in an RMS norm is left over, and refused."""
    if architecture.norm == "layer":
        return frozenset(architecture.block)
    linear = {role: stem for role, stem in architecture.block.items() if not role.endswith("norm")}
    return frozenset(role for role, stem in linear.items() if f"{stem}.bias" in in_block)


def _layers(
    architecture: Architecture,
    keys: Keys,
    stored: Mapping[str, Weight],
    num_layers: int,
    head_dim: int,
    score_width: int | None,
) -> tuple[Layer, ...]:
    window = _window(architecture, keys)
    ropes = {} if architecture.positions else read_ropes(architecture, keys, stored, head_dim)
    scale = float((score_width or head_dim) ** -0.5)
    slides = _sliding(keys, num_layers) if window else [False] * num_layers
    return tuple(Layer(window if s else None, ropes.get(SLIDING if s else FULL), scale) for s in slides)


def _window(architecture: Architecture, keys: Keys) -> int | None:
    window = keys.optional_integer("attention.sliding_window")
    if window is None or "attention.sliding_window_pattern" in architecture.defaults:
        return window
    if window < keys.integer("context_length"):
        key = keys.key("attention.sliding_window")
        raise ModelError(f"{key} is {window}; which layers of {keys.prefix} slide is not defined")
    return None


def _sliding(keys: Keys, num_layers: int) -> list[bool]:
    """Which layers slide: listed one by one, or all but the last of every `pattern`, or all where it is 0."""
    key = "attention.sliding_window_pattern"
    pattern = keys.get(key)
    if isinstance(pattern, np.ndarray):
        if pattern.shape != (num_layers,):
            raise ModelError(f"{keys.key(key)} lists {pattern.size} layers; the model has {num_layers}")
        return [bool(slides) for slides in pattern]
    every = 0 if pattern == 0 else keys.integer(key)
    return [every == 0 or i % every < every - 1 for i in range(num_layers)]
