"""Typed access to a model's hyper-parameters in GGUF metadata, with an error that names key and value."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refquant.errors import ModelError
from refquant.models.values import positive_integer, positive_real


@dataclass(frozen=True)
class Keys:
    """The keys of one architecture (`llama.block_count`), asked for without its name (`block_count`).

    Attributes:
        metadata: every key of the file.
        prefix: what GGUF calls the architecture.
        defaults: what an absent key means.
    """

    metadata: Mapping[str, object]
    prefix: str
    defaults: Mapping[str, object]

    def key(self, name: str) -> str:
        """The key as it stands in the file."""
        return f"{self.prefix}.{name}"

    def get(self, name: str, default: object = None) -> object:
        """The value as stored; where the key is absent, what the architecture assumes, or else `default`."""
        return self.metadata.get(self.key(name), self.defaults.get(name, default))

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer, given once or once for each layer and there always the same."""
        return positive_integer(self.key(name), self._same(name, default))

    def optional_integer(self, name: str) -> int | None:
        """A positive integer; None where the key is absent or 0."""
        return None if self._same(name, 0) == 0 else self.integer(name)

    def real(self, name: str, default: float | None = None) -> float:
        """A positive, finite number, given once or once for each layer and there always the same."""
        return positive_real(self.key(name), self._same(name, default))

    def optional_real(self, name: str) -> float | None:
        """A positive, finite number; None where the key is absent or 0."""
        return None if self._same(name, 0.0) == 0 else self.real(name)

    def refuse(self, name: str, neutral: object, reason: str) -> None:
        """Raise unless the key is absent or has the value that changes nothing."""
        value = self.get(name, neutral)
        if not isinstance(value, type(neutral)) or value != neutral:
            raise ModelError(f"{self.key(name)} is {value!r}: {reason}")

    def _same(self, name: str, default: object) -> object:
        value = self.get(name, default)
        if not isinstance(value, np.ndarray):
            return value
        if value.ndim != 1 or value.size == 0 or (value != value[0]).any():
            raise ModelError(f"{self.key(name)} is {value.tolist()!r}; layers that differ in it are not supported")
        return value[0].item()
