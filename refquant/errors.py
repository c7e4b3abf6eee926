"""The errors that refquant raises for bad input.

Every one is a `RefquantError`, and a `RefquantError` is a `ValueError`. A message says what was given, where, what
the limit is, and what to do.
"""

import difflib
from collections.abc import Iterable


class RefquantError(ValueError):
    """Input that refquant cannot take."""


class UnknownNameError(RefquantError):
    """A name (format, option, architecture, tensor) that is not known; the message offers near ones."""


class NonFiniteError(RefquantError):
    """A NaN or an infinity where every value must be finite."""


class ScaleOverflowError(RefquantError):
    """A scale that does not fit the type it is stored in."""


class PartsError(RefquantError):
    """Stored parts whose names, dtypes or shapes are not those of their format."""


class CheckpointError(RefquantError):
    """A file that is malformed, truncated or of an unknown kind."""


class ModelError(RefquantError):
    """A model that cannot be run: unknown architecture, missing tensor, contradicting configuration."""


class MissingExtraError(RefquantError):
    """An optional dependency that is needed now and is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed: pip install 'refquant[{extra}]'")


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a misspelt name: near names first, and all of them when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(names)}"
    return UnknownNameError(f"unknown {kind} {given!r}; {hint}")
