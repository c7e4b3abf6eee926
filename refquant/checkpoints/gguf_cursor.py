"""A bounded cursor over the bytes of a GGUF file: nothing is believed before it is known to fit."""

import struct
from array import array
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from refquant.arrays import Array
from refquant.checkpoints.gguf_values import Buffer, ByteOrder, StringArray
from refquant.errors import CheckpointError

_MARKS: Final = {"little": "<", "big": ">"}


class Cursor:
    """A place in a file, and how its numbers are stored there.

    Args:
        buffer: the whole file.
        path: its name, for messages.
    """

    def __init__(self, buffer: Buffer, path: Path) -> None:
        self.buffer = buffer
        self.path = path
        self.at = 0
        self.end = len(buffer)
        self.u32_struct = struct.Struct("<I")
        self.u64_struct = struct.Struct("<Q")
        self.length_struct = self.u64_struct
        self.byte_order: ByteOrder = "little"

    def set_layout(self, byte_order: ByteOrder, version: int) -> None:
        """From here on numbers are stored in this order; version 1 has lengths of 32 bits."""
        self.byte_order = byte_order
        self.u32_struct = self.layout("I")
        self.u64_struct = self.layout("Q")
        self.length_struct = self.u32_struct if version == 1 else self.u64_struct

    def layout(self, code: str) -> struct.Struct:
        """How a number of `struct`'s code is stored here."""
        return struct.Struct(_MARKS[self.byte_order] + code)

    @property
    def left(self) -> int:
        """Bytes from here to the end of the file."""
        return self.end - self.at

    def u32(self, what: str) -> int:
        """An unsigned integer of 32 bits."""
        return self._integer(self.u32_struct, what)

    def u64(self, what: str) -> int:
        """An unsigned integer of 64 bits."""
        return self._integer(self.u64_struct, what)

    def length(self, what: str) -> int:
        """A length or a count: 64 bits, 32 in version 1."""
        return self._integer(self.length_struct, what)

    def count(self, what: str, least_bytes: int) -> int:
        """How many things follow, each of at least that many bytes; refused where they cannot all be there."""
        start = self.at
        count = self.length(what)
        if count > self.left // least_bytes:
            self.fail(
                f"{what} is {count}; at most {self.left // least_bytes} fit in the {self.left} bytes that follow, "
                f"at {least_bytes} or more each",
                start,
            )
        return count

    def string(self, what: str, limit: int) -> bytes:
        """The bytes of a string of at most `limit` bytes."""
        start = self.at
        length = self.length(f"the length of {what}")
        if length > limit:
            self.fail(f"{what} is {length} bytes long; the limit is {limit}", start)
        if length > self.left:
            self.fail(f"{what} is {length} bytes long; only {self.left} bytes follow", start)
        self.at += length
        return self.buffer[self.at - length : self.at]

    def skip(self, size: int, what: str) -> int:
        """Step over bytes that are looked at later; returns where they begin."""
        if size > self.left:
            self.fail(f"{what} takes {size} bytes; only {self.left} bytes follow")
        self.at += size
        return self.at - size

    def strings(self, count: int, what: str) -> StringArray:
        """The strings that follow one another: their places are noted, their text stays in the file."""
        length, buffer, end, at = self.length_struct, self.buffer, self.end, self.at
        starts = array("Q")
        for i in range(count):
            start = at + length.size
            if start > end:
                self.fail(f"the length of {what}[{i}] takes {length.size} bytes; only {end - at} bytes follow", at)
            (size,) = length.unpack_from(buffer, at)
            if size > end - start:
                self.fail(f"{what}[{i}] is {size} bytes long; only {end - start} bytes follow", at)
            starts.append(start)
            at = start + size
        self.at = at
        return StringArray(buffer, length, np.frombuffer(starts, np.uint64))

    def view(self, dtype: np.dtype[np.generic], count: int, start: int) -> Array:
        """Numbers at a place, as a read-only view of the file in the file's byte order."""
        return np.frombuffer(self.buffer, dtype.newbyteorder(self.byte_order), count, start)

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        """Raise a CheckpointError that says at which byte it went wrong."""
        raise CheckpointError(f"{self.path}: byte {self.at if at is None else at}: {message}")

    def _integer(self, layout: struct.Struct, what: str) -> int:
        if layout.size > self.left:
            self.fail(f"{what} takes {layout.size} bytes; only {self.left} bytes follow")
        (value,) = layout.unpack_from(self.buffer, self.at)
        self.at += layout.size
        return int(value)
