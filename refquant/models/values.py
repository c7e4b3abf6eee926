"""Typed access to the values of a config.json, with an error that names key and value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refquant.errors import ModelError

# What a config that leaves a key out means, unless its architecture says otherwise.
_DEFAULTS: dict[str, object] = {
    "activation": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_epsilon": 1e-6,
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 1.0,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "use_sliding_window": True,
}
_KEYS = {"activation": "hidden_act", "norm_epsilon": "rms_norm_eps"}


@dataclass(frozen=True)
class Values:
    """The values of a configuration, by the field's names.

    Attributes:
        raw: the decoded JSON object.
        keys: the architecture's own names for some fields.
        defaults: what leaving out a field means for this architecture.
    """

    raw: Mapping[str, Any]
    keys: Mapping[str, str]
    defaults: Mapping[str, object]

    def key(self, name: str) -> str:
        """What config.json calls the field."""
        return self.keys.get(name, _KEYS.get(name, name))

    def get(self, name: str) -> Any:
        """The value as decoded; the default where the key is left out, None where there is no default."""
        key = self.key(name)
        return self.raw[key] if key in self.raw else self.defaults.get(name, _DEFAULTS.get(name))

    def optional_integer(self, name: str) -> int | None:
        """A positive integer, or None where it is null or left out."""
        return None if self.get(name) is None else self.integer(name)

    def integer(self, name: str) -> int:
        """A positive integer."""
        return positive_integer(self.key(name), self.get(name))

    def optional_real(self, name: str) -> float | None:
        """A positive number, or None where it is null or left out."""
        return None if self.get(name) is None else self.real(name)

    def real(self, name: str) -> float:
        """A positive, finite number."""
        return positive_real(self.key(name), self.get(name))

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise ModelError(f"{self.key(name)} is {value!r}; it must be true or false")
        return value

    def text(self, name: str) -> str:
        """A string."""
        value = self.get(name)
        if not isinstance(value, str):
            raise ModelError(f"{self.key(name)} is {value!r}; it must be a string")
        return value


def positive_integer(key: str, value: object) -> int:
    """The value of `key`, which must be an integer above 0."""
    if value is None:
        raise ModelError(f"{key} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ModelError(f"{key} is {value!r}; it must be a positive integer")
    return value


def positive_real(key: str, value: object) -> float:
    """The value of `key`, which must be a finite number above 0."""
    if value is None:
        raise ModelError(f"{key} is missing")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ModelError(f"{key} is {value!r}; it must be a positive, finite number")
    return float(value)
