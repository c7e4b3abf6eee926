"""A model's hyper-parameters as GGUF keys, in the order of llama.cpp's converter (spec/gguf_models.md, section 6).

Each key has one function of the configuration, and each architecture a list of keys; a key whose function gives None is
left out.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from refquant.checkpoints.gguf_values import Value, f32, string, u32
from refquant.errors import ModelError
from refquant.models.architectures import FULL, SLIDING, Architecture
from refquant.models.config import ModelConfig
from refquant.models.rope import LinearRope, LongRope, Rope, YarnRope
from refquant.models.rope_config import read_ropes
from refquant.models.values import Values


@dataclass(frozen=True)
class Facts:
    """What keys are made of.

    Attributes:
        architecture: under Hugging Face's names.
        config: the configuration, explicit for every layer.
        raw: config.json as decoded.
        file_type: llama.cpp's number of the file type.
    """

    architecture: Architecture
    config: ModelConfig
    raw: Mapping[str, Any]
    file_type: int

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotary embeddings of full and of sliding layers, also where the model has no such layer."""
        values = Values(self.raw, self.architecture.keys, self.architecture.defaults)
        return read_ropes(self.architecture, values, self.config.head_dim, {FULL, SLIDING})

    @property
    def rope(self) -> Rope:
        """That of full layers."""
        return self.ropes[FULL]

    @property
    def scaling(self) -> Mapping[str, Any]:
        """The parameters of the rotary scaling that config.json spells out."""
        given = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        spelled: Mapping[str, Any] = given.get(FULL, given)
        return spelled

    @property
    def window(self) -> int | None:
        """The window of layers that slide."""
        values = Values(self.raw, self.architecture.keys, self.architecture.defaults)
        return values.optional_integer("sliding_window")


def _head_dim(facts: Facts) -> Value | None:
    # Qwen2 alone has no such size of its own: there the converter finds the key only where config.json has it.
    absent = facts.architecture.model_type == "qwen2" and "head_dim" not in facts.raw
    return None if absent else u32(facts.config.head_dim)


def _scaling_type(facts: Facts) -> Value | None:
    names: dict[type[Rope], str] = {LinearRope: "linear", YarnRope: "yarn", LongRope: "longrope"}
    kind = names.get(type(facts.rope))
    return None if kind is None or (kind == "yarn" and facts.scaling.get("factor") is None) else string(kind)


def _scaling_factor(facts: Facts) -> Value | None:
    scaled = isinstance(facts.rope, LinearRope | YarnRope) and facts.scaling.get("factor") is not None
    return f32(facts.scaling["factor"]) if scaled else None


def _of_yarn(key: str) -> Callable[[Facts], Value | None]:
    def value(facts: Facts) -> Value | None:
        given = facts.scaling.get(key) if isinstance(facts.rope, YarnRope) and _scaling_factor(facts) else None
        return None if given is None else f32(given)

    return value


def _original_length(facts: Facts) -> Value | None:
    if isinstance(facts.rope, YarnRope) and _scaling_factor(facts):
        return u32(facts.rope.original_max_position_embeddings)
    return None


def _phi3_original_length(facts: Facts) -> int:
    default = facts.architecture.defaults["original_max_position_embeddings"]
    inner = facts.scaling.get("original_max_position_embeddings", default)
    return int(facts.raw.get("original_max_position_embeddings", inner))


def _phi3_amplitude(facts: Facts) -> Value | None:
    """What the converter makes of the two lengths, whatever config.json says of an attention factor."""
    if not isinstance(facts.rope, LongRope):
        return None
    original = _phi3_original_length(facts)
    stretch = facts.config.max_positions / original
    return f32(math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0)


def _soft_cap(name: str) -> Callable[[Facts], Value]:
    def value(facts: Facts) -> Value:
        limit = getattr(facts.config, name)
        if limit is None:
            raise ModelError(f"{facts.architecture.name} without a soft cap ({name}) has no form in GGUF")
        return f32(limit)

    return value


def _optional_cap(facts: Facts) -> Value | None:
    return None if facts.config.final_soft_cap is None else f32(facts.config.final_soft_cap)


_VALUES: Final[dict[str, Callable[[Facts], Value | None]]] = {
    "block_count": lambda f: u32(f.config.num_layers),
    "context_length": lambda f: u32(f.config.max_positions),
    "embedding_length": lambda f: u32(f.config.hidden_size),
    "feed_forward_length": lambda f: u32(f.config.intermediate_size),
    "vocab_size": lambda f: u32(f.config.vocab_size),
    "attention.head_count": lambda f: u32(f.config.num_heads),
    "attention.head_count_kv": lambda f: u32(f.config.num_kv_heads),
    "attention.layer_norm_rms_epsilon": lambda f: f32(f.config.norm_epsilon),
    "attention.layer_norm_epsilon": lambda f: f32(f.config.norm_epsilon),
    "attention.key_length": _head_dim,
    "attention.value_length": _head_dim,
    "attention.sliding_window": lambda f: u32(f.window or 0),
    "attn_logit_softcapping": _soft_cap("attention_soft_cap"),
    "final_logit_softcapping": _soft_cap("final_soft_cap"),
    "rope.freq_base": lambda f: f32(f.rope.rope_theta),
    "rope.freq_base_swa": lambda f: f32(f.ropes[SLIDING].rope_theta),
    "rope.dimension_count": lambda f: u32(f.rope.dim),
    "rope.scaling.type": _scaling_type,
    "rope.scaling.factor": _scaling_factor,
    "rope.scaling.original_context_length": _original_length,
    "rope.scaling.yarn_attn_factor": _of_yarn("attention_factor"),
    "rope.scaling.yarn_beta_fast": _of_yarn("beta_fast"),
    "rope.scaling.yarn_beta_slow": _of_yarn("beta_slow"),
    "general.file_type": lambda f: u32(f.file_type),
}
_OWN: Final[dict[str, dict[str, Callable[[Facts], Value | None]]]] = {
    "gemma3": {"final_logit_softcapping": _optional_cap},
    "phi3": {"rope.scaling.original_context_length": lambda f: u32(_phi3_original_length(f))},
}

# What the converter's common class writes, in its order; gemma2, phi3 and gpt2 have a list of their own.
_SIZES: Final = ("block_count", "context_length", "embedding_length", "feed_forward_length")
_HEADS: Final = ("attention.head_count", "attention.head_count_kv")
_HEAD_SIZES: Final = ("attention.key_length", "attention.value_length")
_SCALING: Final = (
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
)
_EPSILON: Final = "attention.layer_norm_rms_epsilon"
_TYPE: Final = "general.file_type"
_COMMON: Final = (*_SIZES, *_HEADS, *_SCALING, "rope.freq_base", _EPSILON, *_HEAD_SIZES, _TYPE)

KEYS: Final[dict[str, tuple[str, ...]]] = {
    "llama": (*_COMMON, "vocab_size", "rope.dimension_count"),
    "qwen2": _COMMON,
    "qwen3": _COMMON,
    "gemma2": (
        "context_length",
        "embedding_length",
        "block_count",
        "feed_forward_length",
        *_HEADS,
        _EPSILON,
        *_HEAD_SIZES,
        _TYPE,
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "attention.sliding_window",
    ),
    "gemma3": (
        *(*_SIZES, *_HEADS, *_SCALING, "rope.freq_base", "rope.freq_base_swa", _EPSILON, *_HEAD_SIZES, _TYPE),
        "final_logit_softcapping",
        "attention.sliding_window",
    ),
    "phi3": (
        "context_length",
        "rope.scaling.original_context_length",
        "embedding_length",
        "feed_forward_length",
        "block_count",
        *_HEADS,
        _EPSILON,
        "rope.dimension_count",
        "rope.freq_base",
        _TYPE,
        "attention.sliding_window",
    ),
    "gpt2": (*_SIZES, "attention.head_count", "attention.layer_norm_epsilon", _TYPE),
}


def hyper_parameters(name: str, facts: Facts) -> dict[str, Value]:
    """Every key of the architecture that GGUF calls `name`, with its value's type.

    Raises:
        ModelError: a configuration that has no form in GGUF.
    """
    functions = _VALUES | _OWN.get(name, {})
    values = {key: functions[key](facts) for key in KEYS[name]}
    return {
        key if key.startswith("general.") else f"{name}.{key}": value
        for key, value in values.items()
        if value is not None
    }


def early_parameters(name: str, facts: Facts) -> dict[str, Value]:
    """What the converter writes while it makes tensors, before all other keys."""
    amplitude = _phi3_amplitude(facts) if name == "phi3" else None
    return {} if amplitude is None else {f"{name}.rope.scaling.attn_factor": amplitude}
