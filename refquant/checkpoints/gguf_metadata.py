"""The metadata of a GGUF file: key-value pairs, checked when the file is opened and decoded when they are asked for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from refquant.arrays import Array
from refquant.checkpoints.gguf_cursor import Cursor
from refquant.checkpoints.gguf_values import NUMBERS, STRUCT_CODES, StringArray, Value, ValueType, decoded
from refquant.checkpoints.text import quoted

MAX_KEY: Final = (1 << 16) - 1
ALIGNMENT_KEY: Final = "general.alignment"
DEFAULT_ALIGNMENT: Final = 32

_TYPES: Final = {int(kind): kind for kind in ValueType}
_LEAST_PAIR: Final = 1 + 4 + 1  # a key of one byte, a type, a value of one byte; and the key's length


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a value is.

    Attributes:
        type: of the value, or of the elements.
        start: the byte of the file at which its bytes, or its elements, begin.
        count: how many elements an array has; -1: not an array.
        size: bytes of a string that is not in an array.
        strings: an array's strings.
    """

    type: ValueType
    start: int
    count: int = -1
    size: int = 0
    strings: StringArray | None = None


class Metadata(Mapping[str, object]):
    """The values by key, in the order of the file, as plain Python values.

    Integers, floats, booleans and strings are Python's; arrays of numbers are read-only views of the file, arrays of
    strings are `StringArray`. `typed` gives a value with the type it is stored as.
    """

    def __init__(self, cursor: Cursor, stored: Mapping[str, Stored]) -> None:
        self._cursor = cursor
        self._stored = stored

    def __getitem__(self, key: str) -> object:
        return self.typed(key).value

    def __contains__(self, key: object) -> bool:
        return key in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def typed(self, key: str) -> Value:
        """A value and its type.

        Raises:
            KeyError: no such key.
        """
        stored = self._stored[key]
        if stored.count < 0:
            return Value(stored.type, self._scalar(stored))
        if stored.strings is not None:
            return Value(stored.type, stored.strings, is_array=True)
        return Value(stored.type, self._numbers(stored), is_array=True)

    def start_of(self, key: str) -> int:
        """The byte of the file at which a value begins."""
        return self._stored[key].start

    def _scalar(self, stored: Stored) -> int | float | bool | str:
        buffer = self._cursor.buffer
        if stored.type is ValueType.STR:
            return decoded(buffer[stored.start : stored.start + stored.size])
        if stored.type is ValueType.BOOL:
            return buffer[stored.start] != 0
        value: int | float = self._cursor.layout(STRUCT_CODES[stored.type]).unpack_from(buffer, stored.start)[0]
        return value

    def _numbers(self, stored: Stored) -> Array:
        if stored.type is not ValueType.BOOL:
            return self._cursor.view(NUMBERS[stored.type], stored.count, stored.start)
        flags = self._cursor.view(np.dtype(np.uint8), stored.count, stored.start)
        return flags.view(np.bool_) if flags.max(initial=0) <= 1 else flags != 0  # NumPy's bool is 0 or 1, nothing else


def read_metadata(cursor: Cursor, pairs: int) -> Metadata:
    """Read that many key-value pairs at the cursor.

    Raises:
        CheckpointError: a key that is empty, too long, no UTF-8 or there twice; an unknown type, an array of arrays;
            anything that goes past the end of the file.
    """
    stored: dict[str, Stored] = {}
    for i in range(pairs):
        begin = cursor.at
        key = read_name(cursor, f"key {i} of the metadata", MAX_KEY)
        if key in stored:
            cursor.fail(f"the key {quoted(key)} occurs twice in the metadata", begin)
        stored[key] = _read_value(cursor, f"metadata {quoted(key)}")
    return Metadata(cursor, stored)


def least_pair_bytes(cursor: Cursor) -> int:
    """The fewest bytes that a key-value pair takes."""
    return cursor.length_struct.size + _LEAST_PAIR


def read_name(cursor: Cursor, what: str, limit: int) -> str:
    """A key or a tensor's name: not empty, UTF-8, without NUL."""
    begin = cursor.at
    raw = cursor.string(what, limit)
    if not raw:
        cursor.fail(f"{what} is empty", begin)
    if b"\0" in raw:
        cursor.fail(f"{what} has a NUL at its byte {raw.index(0)}; C programs would read less of it", begin)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        cursor.fail(f"{what} is not UTF-8: {error.reason} at its byte {error.start}", begin)


def alignment_of(metadata: Metadata, cursor: Cursor) -> int:
    """The alignment of the data: `general.alignment`, or 32.

    Raises:
        CheckpointError: not a u32, not a power of two.
    """
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    value, start = metadata.typed(ALIGNMENT_KEY), metadata.start_of(ALIGNMENT_KEY)
    if value.type is not ValueType.U32 or value.is_array or not isinstance(value.value, int):
        cursor.fail(f"metadata {ALIGNMENT_KEY!r} is of type {value.type_name}; it must be u32", start)
    if not is_power_of_two(value.value):
        cursor.fail(f"metadata {ALIGNMENT_KEY!r} is {value.value}; it must be a power of two", start)
    return value.value


def is_power_of_two(number: int) -> bool:
    """Whether a number is 1, 2, 4 and so on."""
    return number > 0 and number & (number - 1) == 0


def _read_value(cursor: Cursor, what: str) -> Stored:
    kind = _read_type(cursor, f"the type of {what}")
    if kind is ValueType.STR:
        size = cursor.length(f"the length of {what}")
        return Stored(kind, cursor.skip(size, what), size=size)
    if kind is not ValueType.ARR:
        return Stored(kind, cursor.skip(NUMBERS[kind].itemsize, what))
    begin = cursor.at
    kind = _read_type(cursor, f"the element type of {what}")
    if kind is ValueType.ARR:
        cursor.fail(f"{what} is an array of arrays, which GGUF readers do not take", begin)
    if kind is ValueType.STR:
        count = cursor.count(f"the length of {what}", cursor.length_struct.size)
        start = cursor.at
        return Stored(kind, start, count, strings=cursor.strings(count, what))
    count = cursor.count(f"the length of {what}", NUMBERS[kind].itemsize)
    return Stored(kind, cursor.skip(count * NUMBERS[kind].itemsize, what), count)


def _read_type(cursor: Cursor, what: str) -> ValueType:
    begin = cursor.at
    number = cursor.u32(what)
    if number not in _TYPES:
        cursor.fail(f"{what} is {number}; the types are 0 to {max(_TYPES)}", begin)
    return _TYPES[number]
