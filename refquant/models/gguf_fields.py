"""Values of GGUF metadata by key, checked for their kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError


@dataclass(frozen=True)
class Fields:
    """Metadata with the name of the file that errors name.

    Attributes:
        metadata: plain values by key.
        source: where they are from.
    """

    metadata: Mapping[str, object]
    source: str

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error for a value that will not do."""
        return CheckpointError(f"{self.source}: metadata {key!r}: {problem}")

    def string(self, key: str) -> str | None:
        """A string; None where there is none."""
        value = self.metadata.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, "a string")

    def boolean(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool | np.bool_):
            return bool(value)
        raise self._wrong(key, "true or false")

    def integer(self, key: str) -> int | None:
        """An integer; None where there is none."""
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            return int(value)
        raise self._wrong(key, "an integer")

    def strings(self, key: str) -> list[str]:
        """An array of strings.

        Raises:
            CheckpointError: there is none, or it is something else.
        """
        if key not in self.metadata:
            raise self.error(key, "missing; is this a file without a tokenizer?")
        value = self.metadata[key]
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            found = list(value)
            if set(map(type, found)) <= {str}:
                return found
        raise self._wrong(key, "an array of strings")

    def numbers(self, key: str, count: int, default: float) -> npt.NDArray[Any]:
        """The first `count` numbers of an array; `default` that often where there is none.

        Raises:
            CheckpointError: it is something else, or shorter.
        """
        if key not in self.metadata:
            return np.full(count, default)
        try:
            found = np.asarray(self.metadata[key])
        except (TypeError, ValueError):
            raise self._wrong(key, "an array of numbers") from None
        if found.ndim != 1 or (found.dtype.kind not in "iuf" and found.size):
            raise self._wrong(key, "an array of numbers")
        if len(found) < count:
            raise self.error(key, f"{len(found)} values for {count} tokens; each token needs one")
        return found[:count]

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        return self.error(key, f"{quoted(repr(self.metadata[key]))} given; expected {expected}")
