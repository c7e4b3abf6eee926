"""llama.cpp's first kind of importance matrix file, usually `*.dat` (spec/imatrix.md, section 3).

Little-endian without a magic number: i32 entries; for each i32 length and name, i32 calls, i32 values, float32
values; then, in newer files, i32 chunks, i32 length and the name of the text.
"""

import mmap
import struct
from pathlib import Path
from typing import Final

import numpy as np

from refquant.arrays import Float32
from refquant.checkpoints.atomic import replacing
from refquant.checkpoints.imatrix_record import Imatrix, ImatrixEntry
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError, RefquantError

LONGEST_NAME: Final = 1 << 16
_INT32_MAX: Final = 2**31 - 1


def read(path: Path) -> Imatrix:
    """Read a legacy file: sums are mean · calls, counts are calls.

    Raises:
        CheckpointError: a count or length that is not positive or goes past the end, a name that is not UTF-8 or
            comes twice, bytes after the end.
    """
    if path.stat().st_size < 4:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes long; an importance matrix has at least 4")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(path, data)
        count = cursor.positive("the number of entries")
        entries: dict[str, ImatrixEntry] = {}
        for i in range(count):
            name, entry = _read_entry(cursor, i)
            if name in entries:
                raise CheckpointError(f"{path}: the entry {quoted(name)} occurs twice, the second time as entry {i}")
            entries[name] = entry
        chunks = 0
        datasets: tuple[str, ...] = ()
        if cursor.left:
            chunks = max(cursor.int32("the number of chunks"), 0)
        if cursor.left:
            dataset = cursor.text("the name of the text", shortest=0)
            datasets = (dataset,) if dataset else ()
        if cursor.left:
            raise CheckpointError(f"{path}: {cursor.left} bytes follow the name of the text, at byte {cursor.position}")
    return Imatrix(entries, datasets, chunks, 0)


def write(path: Path, imatrix: Imatrix) -> None:
    """Write a legacy file, entries sorted by name; those that have seen nothing are left out, as llama-imatrix does.

    Raises:
        RefquantError: nothing is left to write, a name or count that its field cannot hold.
    """
    kept = sorted((name.encode(), entry) for name, entry in imatrix.entries.items() if entry.covered)
    if not kept:
        raise RefquantError(f"{path}: no entry of the importance matrix has seen any data; there is nothing to write")
    with replacing(path) as file:
        file.write(struct.pack("<i", len(kept)))
        for name, entry in kept:
            calls, values = _means_by_calls(entry, imatrix.chunk_size)
            if max(calls, values.size) > _INT32_MAX:
                raise RefquantError(f"{path}: {name!r}: {calls} calls of {values.size} values; a field holds 2^31 − 1")
            file.write(struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, values.size))
            file.write(values.astype("<f4").tobytes())
        text = imatrix.datasets[-1].encode() if imatrix.datasets else b""
        file.write(struct.pack("<ii", imatrix.chunk_count, len(text)) + text)


def _means_by_calls(entry: ImatrixEntry, chunk_size: int) -> tuple[int, Float32]:
    """The calls, and float32 (matrices, n) mean · calls: division and product each rounded once."""
    most = int(entry.counts.max())
    if chunk_size == 0 and len(entry.counts) == 1:  # mean · calls already
        return most, entry.sums
    calls = -(-most // max(chunk_size, 1))
    return calls, entry.importance * np.float32(calls)


def _read_entry(cursor: "_Cursor", i: int) -> tuple[str, ImatrixEntry]:
    name = cursor.text(f"the name of entry {i}", shortest=1)
    calls = cursor.int32(f"the calls of entry {i} {quoted(name)}")
    size = cursor.positive(f"the number of values of entry {i} {quoted(name)}")
    values = np.frombuffer(cursor.take(4 * size, f"the {size} values of entry {i} {quoted(name)}"), "<f4")
    # llama-quantize takes values without calls as they are: one call says the same.
    return name, ImatrixEntry(values.astype(np.float32).reshape(1, -1), np.array([max(calls, 1)], np.int64))


class _Cursor:
    """A position in the file, that no length from the file can move past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise CheckpointError(
                f"{self.path}: {what} at byte {self.position} takes {count} bytes, and {self.left} are left: "
                "truncated, or not an importance matrix"
            )
        taken = self.data[self.position : self.position + count]
        self.position += count
        return taken

    def int32(self, what: str) -> int:
        value: int = struct.unpack("<i", self.take(4, what))[0]
        return value

    def positive(self, what: str) -> int:
        value = self.int32(what)
        if value < 1:
            raise CheckpointError(f"{self.path}: {what} at byte {self.position - 4} is {value}; at least 1")
        return value

    def text(self, what: str, shortest: int) -> str:
        length = self.int32(f"the length of {what}")
        if not shortest <= length <= LONGEST_NAME:
            raise CheckpointError(
                f"{self.path}: the length of {what} at byte {self.position - 4} is {length}; "
                f"from {shortest} to {LONGEST_NAME}"
            )
        start, raw = self.position, self.take(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what}: byte {start + error.start} is not UTF-8") from None
