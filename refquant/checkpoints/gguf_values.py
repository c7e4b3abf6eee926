"""Metadata values of GGUF files with the types they are stored as (spec/gguf.md, section 2)."""

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array

Buffer: TypeAlias = mmap.mmap | bytes
ByteOrder: TypeAlias = Literal["little", "big"]


class ValueType(IntEnum):
    """The types a value may have, by the numbers they have in a file (`enum gguf_type`)."""

    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STR = 8
    ARR = 9
    U64 = 10
    I64 = 11
    F64 = 12


# How the `struct` module calls the numbers, with standard sizes.
STRUCT_CODES: Final = {
    ValueType.U8: "B",
    ValueType.I8: "b",
    ValueType.U16: "H",
    ValueType.I16: "h",
    ValueType.U32: "I",
    ValueType.I32: "i",
    ValueType.F32: "f",
    ValueType.BOOL: "?",
    ValueType.U64: "Q",
    ValueType.I64: "q",
    ValueType.F64: "d",
}

NUMBERS: Final[dict[ValueType, np.dtype[np.generic]]] = {
    kind: np.dtype(f"<{code}") for kind, code in STRUCT_CODES.items()
}


@dataclass(frozen=True, eq=False)
class Value:
    """A metadata value as it is stored.

    Attributes:
        type: of the value, or of each element of an array.
        value: int, float, bool or str; of an array, a NumPy array of numbers or a sequence of str.
        is_array: whether it is an array, if perhaps of one element.
    """

    type: ValueType
    value: object
    is_array: bool = False

    @property
    def type_name(self) -> str:
        """The type in words: `u32`, `str`, `[f32]`."""
        name = self.type.name.lower()
        return f"[{name}]" if self.is_array else name


def _scalar(kind: ValueType) -> Callable[[object], Value]:
    def make(value: object) -> Value:
        return Value(kind, value)

    make.__doc__ = f"A value of type {kind.name.lower()}."
    return make


u8, i8, u16, i16 = (_scalar(kind) for kind in (ValueType.U8, ValueType.I8, ValueType.U16, ValueType.I16))
u32, i32, u64, i64 = (_scalar(kind) for kind in (ValueType.U32, ValueType.I32, ValueType.U64, ValueType.I64))
f32, f64, boolean, string = (_scalar(kind) for kind in (ValueType.F32, ValueType.F64, ValueType.BOOL, ValueType.STR))


def strings(values: Sequence[str]) -> Value:
    """An array of strings."""
    return Value(ValueType.STR, values, is_array=True)


def numbers(kind: ValueType, values: npt.ArrayLike) -> Value:
    """An array of numbers of one type; the writer refuses what does not fit it."""
    return Value(kind, np.asarray(values), is_array=True)


class StringArray(Sequence[str]):
    """The strings of an array, each decoded when it is asked for.

    Bytes that are no UTF-8 become lone surrogates (Python's `surrogateescape`), so that nothing is lost.
    """

    def __init__(self, buffer: Buffer, length: struct.Struct, starts: Array) -> None:
        self._buffer = buffer
        self._length = length  # how the length before each string is stored
        self._starts = starts  # uint64 (strings,): where the bytes of each begin

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "StringArray": ...
    def __getitem__(self, index: int | slice) -> "str | StringArray":
        if isinstance(index, slice):
            return StringArray(self._buffer, self._length, self._starts[index])
        return self._at(int(self._starts[index]))

    def __iter__(self) -> Iterator[str]:
        return map(self._at, map(int, self._starts))

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}>"

    def _at(self, start: int) -> str:
        (length,) = self._length.unpack_from(self._buffer, start - self._length.size)
        return decoded(self._buffer[start : start + length])


def decoded(raw: bytes) -> str:
    """The text of a stored string; `encoded` gives its bytes back, whatever they are."""
    return raw.decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    """The bytes of a string as a file stores them."""
    return text.encode("utf-8", "surrogateescape")
