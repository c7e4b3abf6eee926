"""`--tensor-type PATTERN=TYPE`: patterns as llama-quantize reads them (spec/file_types.md, section 6).

llama.cpp searches with std::regex in its ECMAScript syntax. Python's syntax is the same but for what is translated
or refused here.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from refquant.checkpoints.ggml_types import BY_NAME
from refquant.checkpoints.text import quoted
from refquant.errors import RefquantError, unknown_name

LONGEST_FILE: Final = 1 << 20

# What ggml_quantize_chunk writes: every type but integers, F64, and the two that only activations have.
WRITABLE: Final = frozenset(BY_NAME) - {"I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K"}

# POSIX classes, which ECMAScript in C++ has and Python has not, in ASCII.
_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "digit": "0-9",
    "lower": "a-z",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
    "w": r"\w",
    "d": r"\d",
    "s": r"\s",
}
_POSIX: Final = re.compile(r"\[:(\w+):\]")
# Python's alone: groups with names, flags, comments, conditions or lookbehind; anchors of its own; possessive repeats.
_PYTHON_ALONE: Final = re.compile(r"\(\?(?![:=!])|(?<!\\)(?:\\\\)*\\[AZabz]|[*+?}]\+")


@dataclass(frozen=True)
class TensorTypeRule:
    r"""A type for every tensor whose name holds a match of the pattern.

    Attributes:
        pattern: a regular expression, in lower case as llama-quantize makes it, classes such as `\D` included.
        type: of WRITABLE.
    """

    pattern: str
    type: str

    def __post_init__(self) -> None:
        _compiled(self.pattern)

    def matches(self, name: str) -> bool:
        """Whether the name holds a match; upper case in names stays upper case."""
        return _compiled(self.pattern).search(name) is not None

    @classmethod
    def parse(cls, text: str) -> "TensorTypeRule":
        """Read `PATTERN=TYPE`; what precedes the first `=` is the pattern.

        Raises:
            RefquantError: a part is missing, or the pattern is none.
            UnknownNameError: a type that cannot be written.
        """
        pattern, equals, kind = text.partition("=")
        if not (pattern and equals and kind):
            raise RefquantError(f"tensor type {quoted(text)}: write PATTERN=TYPE, such as ffn_down=q6_k")
        lowered = pattern.encode("utf-8", "surrogateescape").lower().decode("utf-8", "surrogateescape")
        return cls(lowered, writable_type(kind))


def read_tensor_types(path: str | os.PathLike[str]) -> tuple[TensorTypeRule, ...]:
    """The rules of a file of `PATTERN=TYPE` between white space.

    Raises:
        RefquantError: a file that is too long or not UTF-8, or what `TensorTypeRule.parse` raises.
        OSError: the file cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        raw = file.read(LONGEST_FILE + 1)
    if len(raw) > LONGEST_FILE:
        raise RefquantError(f"{path}: longer than {LONGEST_FILE} bytes; a list of tensor types is shorter")
    try:
        words = raw.decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise RefquantError(f"{path}: not UTF-8 at byte {error.start}") from None
    return tuple(TensorTypeRule.parse(word) for word in words)


def writable_type(name: str) -> str:
    """The tensor type of this name in upper case.

    Raises:
        UnknownNameError: there is none that can be written.
    """
    asked = name.upper()
    if asked not in WRITABLE:
        raise unknown_name("tensor type", asked, WRITABLE)
    return asked


def _compiled(pattern: str) -> re.Pattern[str]:
    alone = _PYTHON_ALONE.search(pattern)
    if alone:
        raise RefquantError(f"tensor type pattern {quoted(pattern)}: {alone[0]!r} is not in ECMAScript's syntax")
    try:
        return re.compile(_POSIX.sub(_posix_class, pattern), re.ASCII)
    except re.error as error:
        raise RefquantError(f"tensor type pattern {quoted(pattern)}: {error}") from None


def _posix_class(match: re.Match[str]) -> str:
    if match[1] not in _CLASSES:
        raise unknown_name("character class", match[1], _CLASSES)
    return _CLASSES[match[1]]
