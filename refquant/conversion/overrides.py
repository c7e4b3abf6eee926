"""`--override-kv KEY=TYPE:VALUE`, with llama-quantize's types (spec/file_types.md, section 6)."""

import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from refquant.checkpoints import gguf_values
from refquant.checkpoints.gguf_values import Value
from refquant.checkpoints.text import quoted
from refquant.errors import RefquantError, unknown_name

LONGEST_KEY: Final = 127
LONGEST_TEXT: Final = 127


class Override(NamedTuple):
    """A metadata value to set."""

    key: str
    value: Value

    @classmethod
    def parse(cls, text: str) -> "Override":
        """Read `KEY=TYPE:VALUE`, TYPE being int, float, bool or str.

        An integer becomes an unsigned one of 32 bits, as llama-quantize stores it. Where that takes a number's
        absolute value, this refuses the negative one.

        Raises:
            RefquantError: a part is missing, or a value that its type does not have.
            UnknownNameError: another type.
        """
        key, equals, typed = text.partition("=")
        kind, colon, value = typed.partition(":")
        if not (key and equals and colon):
            raise RefquantError(f"override {quoted(text)}: write KEY=TYPE:VALUE, such as general.name=str:Tiny")
        if len(key.encode("utf-8", "surrogateescape")) > LONGEST_KEY:
            raise RefquantError(f"override {quoted(text)}: the key is longer than {LONGEST_KEY} bytes")
        if kind not in _PARSERS:
            raise unknown_name("type of an override", kind, _PARSERS)
        return cls(key, _PARSERS[kind](text, value))


def _integer(text: str, value: str) -> Value:
    try:
        number = int(value, 10) if len(value) < 12 else -1
    except ValueError:
        number = -1
    if not 0 <= number < 2**32:
        raise RefquantError(f"override {quoted(text)}: an integer from 0 to {2**32 - 1}")
    return gguf_values.u32(number)


def _float(text: str, value: str) -> Value:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not abs(number) <= float(np.finfo(np.float32).max):
        raise RefquantError(f"override {quoted(text)}: a number within float32's range")
    return gguf_values.f32(float(np.float32(number)))


def _boolean(text: str, value: str) -> Value:
    if value not in ("true", "false"):
        raise RefquantError(f"override {quoted(text)}: true or false")
    return gguf_values.boolean(value == "true")


def _string(text: str, value: str) -> Value:
    if len(value.encode("utf-8", "surrogateescape")) > LONGEST_TEXT:
        raise RefquantError(f"override {quoted(text)}: the value is longer than {LONGEST_TEXT} bytes")
    return gguf_values.string(value)


_PARSERS: Final[Mapping[str, Callable[[str, str], Value]]] = {
    "int": _integer,
    "float": _float,
    "bool": _boolean,
    "str": _string,
}
