"""Rotary parameters from config.json, in its older spelling (`rope_theta`, `rope_scaling`) and its newer one.

The newer is `rope_parameters`: one object for all layers, or one for each type of layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from refquant.errors import ModelError
from refquant.models.architectures import FULL, SLIDING, Architecture, not_supported
from refquant.models.rope import ROPES, Rope
from refquant.models.values import Values, positive_integer, positive_real

_OLD_NAMES = {"su": "longrope"}  # what early Phi-3 checkpoints call it
_SHARE = "partial_rotary_factor"
_PRETRAINED_LENGTH = "original_max_position_embeddings"
# Keys of a scaling that are read elsewhere, or say nothing that another key does not say.
_COMMON = {"type", "rope_type", "rope_theta", _SHARE, _PRETRAINED_LENGTH}


def read_ropes(architecture: Architecture, values: Values, head_dim: int, types: set[str]) -> dict[str, Rope]:
    """The rotary embedding of each type of layer that the model has."""
    given = _object(values.get("rope_parameters"), "rope_parameters")
    scaling = _object(values.get("rope_scaling"), "rope_scaling")
    nested = bool(given) and set(given) <= {FULL, SLIDING}
    newer = _object(given.get(FULL), FULL) if nested else given
    if given and any(newer.get(key) != value for key, value in scaling.items()):
        raise ModelError("rope_parameters and rope_scaling are both given and differ: keep one")
    if architecture.local_rope and given and not nested:
        raise ModelError(f"rope_parameters of {architecture.name} must be given by layer type: {FULL!r}, {SLIDING!r}")
    ropes = {}
    for kind in sorted(types):
        if nested:
            parameters = _object(given.get(kind), f"rope_parameters[{kind!r}]")
        elif architecture.local_rope and kind == SLIDING:
            parameters = {}  # the scaling stretches the global layers alone
        else:
            parameters = given or scaling
        theta = "rope_local_base_freq" if architecture.local_rope and kind == SLIDING else "rope_theta"
        ropes[kind] = _read(values, dict(parameters), positive_real(theta, values.get(theta)), head_dim)
        if ropes[kind].dim != head_dim and not architecture.partial_rotary:
            raise ModelError(f"{_SHARE} is set; {architecture.name} rotates whole heads")
    return ropes


def _object(value: object, key: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelError(f"{key} is {value!r}; it must be an object or null")
    return value


def _read(values: Values, given: dict[str, Any], theta: float, head_dim: int) -> Rope:
    name = given.get("rope_type", given.get("type", "default"))
    kind = ROPES.get(_OLD_NAMES.get(name, name)) if isinstance(name, str) else None
    if kind is None:
        raise not_supported("rope type", name, ROPES)
    share = positive_real(_SHARE, given.get(_SHARE, values.get(_SHARE)))
    known: dict[str, Any] = {
        "rope_theta": positive_real("rope_theta", given.get("rope_theta", theta)),
        "dim": _rotary_dim(head_dim, share),
        "max_position_embeddings": values.integer("max_position_embeddings"),
        _PRETRAINED_LENGTH: _pretrained_length(values, given),
    }
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key, value in given.items():
        if key not in _COMMON and key not in fields:
            raise not_supported(f"parameter of rope type {name!r}:", key, {k: None for k in fields if k != "dim"})
        if key not in _COMMON and value is not None:
            known[key] = _value(key, value, known["dim"])
    missing = [f.name for f in fields.values() if f.name not in known and f.default is dataclasses.MISSING]
    if missing:
        raise ModelError(f"rope type {name!r} needs {', '.join(missing)}; given: {', '.join(given)}")
    return kind(**{key: value for key, value in known.items() if key in fields})


def _rotary_dim(head_dim: int, share: float) -> int:
    dim = int(head_dim * share)
    if share > 1 or dim < 2 or dim % 2:
        raise ModelError(f"{_SHARE} {share} of head_dim {head_dim} rotates {dim} coordinates; they go in pairs")
    return dim


def _pretrained_length(values: Values, given: Mapping[str, Any]) -> int:
    """The length before scaling: beside the other sizes (Phi-3) or among the scaling's parameters."""
    outer, inner = values.raw.get(_PRETRAINED_LENGTH), given.get(_PRETRAINED_LENGTH)
    if None not in (outer, inner) and outer != inner:
        raise ModelError(f"{_PRETRAINED_LENGTH} is {outer!r} in one place and {inner!r} in the rope parameters")
    default = values.defaults.get(_PRETRAINED_LENGTH, values.get("max_position_embeddings"))
    return positive_integer(_PRETRAINED_LENGTH, next(v for v in (outer, inner, default) if v is not None))


def _value(key: str, value: object, dim: int) -> object:
    if key in ("short_factor", "long_factor"):
        if not isinstance(value, list) or len(value) != dim // 2:
            size = len(value) if isinstance(value, list) else 0
            raise ModelError(f"{key} lists {size} numbers; a rotary dimension of {dim} needs {dim // 2}")
        return tuple(positive_real(key, v) for v in value)
    if key == "truncate":
        if not isinstance(value, bool):
            raise ModelError(f"truncate is {value!r}; it must be true or false")
        return value
    return positive_real(key, value)
