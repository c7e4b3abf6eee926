"""The header of a GGUF file: what it holds and where, checked against every rule before any of it is used.

Spec: spec/gguf.md. All offsets in messages are bytes of the file.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from refquant.arrays import Shape
from refquant.checkpoints.ggml_types import REMOVED, TENSOR_TYPES, TensorType
from refquant.checkpoints.gguf_cursor import Cursor
from refquant.checkpoints.gguf_metadata import Metadata, alignment_of, least_pair_bytes, read_metadata, read_name
from refquant.checkpoints.gguf_values import Buffer, ByteOrder
from refquant.checkpoints.text import quoted

MAGIC: Final = b"GGUF"
LAST_VERSION: Final = 3
MAX_NAME: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_INTEGER: Final = 2**63 - 1
_LEAST_TENSOR: Final = 1 + 4 + 4 + 8  # name, number of dimensions, type, offset; and the name's length, a dimension


@dataclass(frozen=True, slots=True)
class Entry:
    """What the header says of one tensor.

    Attributes:
        type: how its weights are stored.
        shape: in C order; the file writes the dimensions the other way round.
        start: the byte of the file at which its data begins.
        nbytes: how long its data is.
    """

    type: TensorType
    shape: Shape
    start: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """A header that holds together.

    Attributes:
        version: 1, 2 or 3.
        byte_order: of all numbers, those of the data included.
        alignment: of the tensors' data.
        metadata: the values by key.
        entries: the tensors by name, in the order of the file.
        data_start: the byte of the file at which the data begins.
        data_end: one past the last tensor's last byte.
    """

    version: int
    byte_order: ByteOrder
    alignment: int
    metadata: Metadata
    entries: dict[str, Entry]
    data_start: int
    data_end: int


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor as the file describes it: its offset counts from the start of the data, which is not known yet."""

    type: TensorType
    shape: Shape
    nbytes: int
    offset: int
    offset_at: int  # where the file says so


def read_header(buffer: Buffer, path: Path) -> Header:
    """Read the header of a file and check that the data it describes is there; the data is not touched.

    Raises:
        CheckpointError: any rule of the page is broken; the message names the field, the byte and the limit.
    """
    cursor = Cursor(buffer, path)
    version = _read_version(cursor)
    tensors = cursor.length("the number of tensors")
    least_tensor = 2 * cursor.length_struct.size + _LEAST_TENSOR
    pairs = cursor.count("the number of key-value pairs", least_pair_bytes(cursor))
    if tensors > cursor.left // least_tensor:
        cursor.fail(
            f"the number of tensors is {tensors}; at most {cursor.left // least_tensor} fit in the {cursor.left} bytes "
            f"that follow the header, at {least_tensor} or more each",
            8,
        )
    metadata = read_metadata(cursor, pairs)
    alignment = alignment_of(metadata, cursor)
    infos: dict[str, _Info] = {}
    for i in range(tensors):
        begin = cursor.at
        name = read_name(cursor, f"the name of tensor {i}", MAX_NAME)
        if name in infos:
            cursor.fail(f"the tensor {quoted(name)} occurs twice", begin)
        infos[name] = _read_info(cursor, f"tensor {quoted(name)}")
    data_start = _padded(cursor.at, alignment)
    entries, data_end = _place(cursor, infos, data_start, alignment)
    return Header(version, cursor.byte_order, alignment, metadata, entries, data_start, data_end)


def _read_version(cursor: Cursor) -> int:
    if cursor.end < len(MAGIC) or cursor.buffer[: len(MAGIC)] != MAGIC:
        cursor.fail(f"a GGUF file begins with {MAGIC!r}; {bytes(cursor.buffer[:4])!r} found")
    cursor.at = len(MAGIC)
    version = cursor.u32("the version")
    order: ByteOrder = "little"
    if version & 0xFFFF == 0 and version:  # 3 as a big-endian file writes it is 0x03000000 to a little-endian reader
        version, order = int.from_bytes(version.to_bytes(4, "little"), "big"), "big"
    if not 1 <= version <= LAST_VERSION:
        cursor.fail(f"the version is {version}; refquant reads 1 to {LAST_VERSION}", len(MAGIC))
    cursor.set_layout(order, version)
    return version


def _read_info(cursor: Cursor, what: str) -> _Info:
    begin = cursor.at
    dimensions = cursor.u32(f"{what}: the number of dimensions")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        cursor.fail(f"{what} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed", begin)
    extents = []
    for i in range(dimensions):
        at = cursor.at
        extent = cursor.length(f"{what}: dimension {i}")
        if not 1 <= extent <= MAX_INTEGER:
            cursor.fail(f"{what}: dimension {i} is {extent}; 1 to {MAX_INTEGER} are allowed", at)
        extents.append(extent)
    begin = cursor.at
    kind = _read_type(cursor, what)
    if extents[0] % kind.block_size:
        cursor.fail(
            f"{what} has rows of {extents[0]} weights; {kind.name} stores them in blocks of {kind.block_size}", begin
        )
    nbytes = math.prod(extents) // kind.block_size * kind.block_bytes  # Python's integers: nothing wraps
    if math.prod(extents) > MAX_INTEGER or nbytes > MAX_INTEGER:
        cursor.fail(
            f"{what}: shape {extents[::-1]} of {kind.name} is {nbytes} bytes; weights and bytes are limited to "
            f"{MAX_INTEGER}",
            begin,
        )
    offset_at = cursor.at
    return _Info(kind, tuple(reversed(extents)), nbytes, cursor.u64(f"{what}: the offset"), offset_at)


def _read_type(cursor: Cursor, what: str) -> TensorType:
    begin = cursor.at
    number = cursor.u32(f"{what}: the type")
    if number in REMOVED:
        cursor.fail(f"{what} is of type {number}, {REMOVED[number]}, which ggml no longer has", begin)
    if number not in TENSOR_TYPES:
        cursor.fail(f"{what} is of type {number}; the last that refquant knows is {max(TENSOR_TYPES)}", begin)
    return TENSOR_TYPES[number]


def _place(cursor: Cursor, infos: dict[str, _Info], data_start: int, alignment: int) -> tuple[dict[str, Entry], int]:
    """The tensors follow one another in the order of the header, each padded to the alignment, within the file."""
    entries: dict[str, Entry] = {}
    expected, data_end, previous = 0, data_start, ""
    for name, info in infos.items():
        what = f"tensor {quoted(name)} of {info.nbytes} bytes: the offset is {info.offset}"
        if info.offset % alignment:
            cursor.fail(f"{what}, which is no multiple of the alignment, {alignment}", info.offset_at)
        if info.offset != expected:
            before = f"tensor {quoted(previous)}" if previous else "the start of the data"
            problem = "overlaps" if info.offset < expected else "leaves a gap after"
            cursor.fail(f"{what}, which {problem} {before}; it must be {expected}", info.offset_at)
        data_end = data_start + info.offset + info.nbytes
        if data_end > cursor.end:
            cursor.fail(
                f"{what}, so its data ends at byte {data_end}; the file has {cursor.end} bytes: truncated or wrong",
                info.offset_at,
            )
        entries[name] = Entry(info.type, info.shape, data_start + info.offset, info.nbytes)
        expected, previous = _padded(info.offset + info.nbytes, alignment), name
    return entries, data_end


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
