"""Rotary parameters from GGUF metadata and the tensors of frequency divisors (spec/gguf_models.md, section 4)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from refquant.errors import ModelError
from refquant.models.architectures import FULL, SLIDING, Architecture, not_supported
from refquant.models.gguf_architectures import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from refquant.models.gguf_keys import Keys
from refquant.models.rope import DefaultRope, DividedRope, LinearRope, LongRope, Rope, YarnRope
from refquant.models.weights import Weight

# The tensors that each type of scaling goes with.
_TENSORS: dict[str, set[str]] = {
    "none": {ROPE_FREQS},
    "linear": {ROPE_FREQS},
    "yarn": set(),
    "longrope": {ROPE_LONG, ROPE_SHORT},
}
_NEUTRAL = {
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.alpha": 0.0,
}
_AMPLITUDE = "rope.scaling.attn_factor"


def read_ropes(architecture: Architecture, keys: Keys, stored: Mapping[str, Weight], head_dim: int) -> dict[str, Rope]:
    """The rotary embedding of full and of sliding layers.

    Raises:
        ModelError: a scaling that the forward pass does not have, or divisors that are missing, of another length than
            the rotated pairs, or unused.
    """
    dim = keys.integer("rope.dimension_count", head_dim)
    if dim > head_dim or dim % 2 or (dim != head_dim and not architecture.partial_rotary):
        key = keys.key("rope.dimension_count")
        raise ModelError(f"{key} is {dim}; {keys.prefix} does not rotate heads of {head_dim} so")
    rope = _scaled(keys, stored, dim)
    if not architecture.local_rope:
        return {FULL: rope, SLIDING: rope}
    theta = keys.real("rope.freq_base_swa")
    local = DefaultRope(rope_theta=theta, dim=dim, max_position_embeddings=rope.max_position_embeddings)
    return {FULL: rope, SLIDING: local}


def _scaled(keys: Keys, stored: Mapping[str, Weight], dim: int) -> Rope:
    kind = keys.get("rope.scaling.type", "linear")
    if not isinstance(kind, str) or kind not in _TENSORS:
        raise not_supported("rope scaling", kind, _TENSORS)
    for name, neutral in _NEUTRAL.items():
        keys.refuse(name, neutral, "rotary scaling with it is not supported")
    known: dict[str, Any] = {
        "rope_theta": keys.real("rope.freq_base", 10_000.0),
        "dim": dim,
        "max_position_embeddings": keys.integer("context_length"),
    }
    factor = 1.0 if kind == "none" else _factor(keys)
    divisors = _divisors(keys.prefix, kind, stored, dim)
    if kind == "yarn":
        return _yarn(keys, known, factor)
    if ROPE_LONG in divisors:
        return _longrope(keys, known, factor, divisors)
    keys.refuse(_AMPLITUDE, 1.0, f"rope scaling {kind!r} has no amplitude")
    if divisors:
        return DividedRope(**known, divisors=tuple(factor * d for d in divisors[ROPE_FREQS]))
    return LinearRope(**known, factor=factor) if factor != 1 else DefaultRope(**known)


def _factor(keys: Keys) -> float:
    """How much longer the context has become, under the key's newer or older name; 1 where neither says."""
    return keys.optional_real("rope.scaling.factor") or keys.optional_real("rope.scale_linear") or 1.0


def _yarn(keys: Keys, known: Mapping[str, Any], factor: float) -> YarnRope:
    rope = YarnRope(
        **known,
        original_max_position_embeddings=_original_length(keys),
        factor=factor,
        attention_factor=keys.optional_real("rope.scaling.yarn_attn_factor"),
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0),
    )
    return dataclasses.replace(rope, attention_factor=rope.amplitude * keys.real(_AMPLITUDE, 1.0))


def _longrope(
    keys: Keys, known: Mapping[str, Any], factor: float, divisors: Mapping[str, tuple[float, ...]]
) -> LongRope:
    if factor != 1:
        key = keys.key("rope.scaling.factor")
        raise ModelError(f"{key} is {factor}; longrope has a divisor for every pair instead")
    return LongRope(
        **known,
        original_max_position_embeddings=_original_length(keys),
        short_factor=divisors[ROPE_SHORT],
        long_factor=divisors[ROPE_LONG],
        attention_factor=keys.real(_AMPLITUDE, 1.0),
    )


def _original_length(keys: Keys) -> int:
    return keys.integer("rope.scaling.original_context_length", keys.integer("context_length"))


def _divisors(prefix: str, kind: str, stored: Mapping[str, Weight], dim: int) -> dict[str, tuple[float, ...]]:
    """The divisors that the file has, by tensor."""
    unsaid = prefix == "phi3" and kind == "linear"  # Phi-3's converter leaves the type out
    allowed = _TENSORS["longrope" if unsaid else kind]
    found = {name: stored[name] for name in (ROPE_FREQS, ROPE_LONG, ROPE_SHORT) if name in stored}
    if found and set(found) != allowed:
        needed = f"takes {' and '.join(sorted(allowed))} together" if allowed else "takes none"
        raise ModelError(f"the file has {' and '.join(found)}; rope scaling {kind!r} of {prefix} {needed}")
    return {name: _checked(name, weight, dim) for name, weight in found.items()}


def _checked(name: str, weight: Weight, dim: int) -> tuple[float, ...]:
    values = weight.dequantize()
    if values.shape != (dim // 2,):
        raise ModelError(f"{name}: shape {values.shape} given; {dim} rotated coordinates have {dim // 2} pairs")
    if not (np.isfinite(values) & (values > 0)).all():
        raise ModelError(f"{name}: {values.min()} … {values.max()} given; divisors must be positive and finite")
    return tuple(values.tolist())
