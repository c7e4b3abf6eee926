"""Metadata values and keys as the bytes of a little-endian GGUF file of version 3."""

import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

import numpy as np

from refquant.arrays import Array
from refquant.checkpoints.gguf_metadata import ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAX_KEY, is_power_of_two
from refquant.checkpoints.gguf_values import NUMBERS, STRUCT_CODES, Value, ValueType, encoded
from refquant.checkpoints.text import quoted
from refquant.errors import RefquantError

MAX_LENGTH: Final = 1 << 30  # of a string in bytes and of an array in elements: llama.cpp reads no more
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


def encode_metadata(metadata: Mapping[str, Value]) -> bytes:
    """All key-value pairs, in the order given.

    Raises:
        RefquantError: a key that is empty, too long, or has a NUL; a value that does not fit its type; an alignment
            that is no power of two.
    """
    alignment_of(metadata)
    return b"".join(encode_name(key, "key", MAX_KEY) + _encode_value(key, value) for key, value in metadata.items())


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """The alignment that the metadata asks for, or 32."""
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    given = metadata[ALIGNMENT_KEY]
    if given.type is not ValueType.U32 or given.is_array or not isinstance(given.value, int):
        raise RefquantError(f"metadata {ALIGNMENT_KEY!r} of type {given.type_name} given; it must be u32")
    if not is_power_of_two(given.value):
        raise RefquantError(f"metadata {ALIGNMENT_KEY!r}: {given.value} given; it must be a power of two")
    return given.value


def encode_name(name: str, what: str, limit: int) -> bytes:
    """A key or a tensor's name with its length before it."""
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError:
        raise RefquantError(f"{what} {quoted(name)} is not text: it has half of a surrogate pair") from None
    if not 1 <= len(raw) <= limit:
        raise RefquantError(f"{what} {quoted(name)} is {len(raw)} bytes long in UTF-8; 1 to {limit} are allowed")
    if b"\0" in raw:
        raise RefquantError(f"{what} {quoted(name)} has a NUL in it; C programs would read less of it")
    return _U64.pack(len(raw)) + raw


def _encode_value(key: str, value: Value) -> bytes:
    def refuse(problem: str) -> NoReturn:
        raise RefquantError(f"metadata {quoted(key)} of type {value.type_name}: {problem}")

    if value.type is ValueType.ARR:
        refuse("an array of arrays, which GGUF readers do not take")
    if not value.is_array:
        encode = _encode_string if value.type is ValueType.STR else _encode_number
        return _U32.pack(value.type) + encode(value.type, value.value, refuse)
    if not isinstance(value.value, Sequence | np.ndarray) or isinstance(value.value, str):
        refuse(f"{type(value.value).__name__} given; an array is a sequence")
    if len(value.value) > MAX_LENGTH:
        refuse(f"{len(value.value)} elements given; llama.cpp reads at most {MAX_LENGTH}")
    if value.type is ValueType.STR:
        elements = b"".join(_encode_string(value.type, text, refuse) for text in value.value)
    else:
        elements = _encode_numbers(value.type, np.asarray(value.value), refuse)
    return _U32.pack(ValueType.ARR) + _U32.pack(value.type) + _U64.pack(len(value.value)) + elements


def _encode_string(kind: ValueType, text: object, refuse: Callable[[str], NoReturn]) -> bytes:
    if not isinstance(text, str):
        refuse(f"{type(text).__name__} given; a string is needed")
    try:
        raw = encoded(text)
    except UnicodeEncodeError:
        refuse("half of a surrogate pair that stands for no byte")
    if len(raw) > MAX_LENGTH:
        refuse(f"a string of {len(raw)} bytes given; llama.cpp reads at most {MAX_LENGTH}")
    return _U64.pack(len(raw)) + raw


def _encode_number(kind: ValueType, number: object, refuse: Callable[[str], NoReturn]) -> bytes:
    layout = struct.Struct(f"<{STRUCT_CODES[kind]}")
    if (kind is ValueType.BOOL) != isinstance(number, bool | np.bool_):
        refuse(f"{number!r} given")
    try:
        if NUMBERS[kind].kind == "f":
            return layout.pack(float(number))  # type: ignore[arg-type]
        return layout.pack(bool(number) if kind is ValueType.BOOL else operator.index(number))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, struct.error):
        refuse(f"{number!r} given, which it does not hold")


def _encode_numbers(kind: ValueType, given: Array, refuse: Callable[[str], NoReturn]) -> bytes:
    stored = NUMBERS[kind]
    if given.ndim != 1:
        refuse(f"an array of {given.ndim} axes given; it has one")
    if given.size == 0:
        return b""
    allowed = {"b": "b", "f": "fiu"}.get(stored.kind, "iu")
    if given.dtype.kind not in allowed:
        refuse(f"an array of {given.dtype} given")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is found below
        narrowed = given.astype(stored)
    lost = np.isinf(narrowed) & np.isfinite(given) if stored.kind == "f" else narrowed != given
    if lost.any():
        at = int(np.argmax(lost))
        refuse(f"{given[at]} at index {at}, which it does not hold")
    return narrowed.tobytes()
