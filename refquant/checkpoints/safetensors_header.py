"""The header of a safetensors file, read and checked (spec/safetensors.md, sections 1 and 2)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from refquant.arrays import Shape
from refquant.checkpoints.dtypes import DTYPES, Dtype
from refquant.checkpoints.header_json import MAX_INTEGER, HeaderReader
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError, UnknownNameError, unknown_name

MAX_HEADER: Final = 100_000_000
LENGTH_BYTES: Final = 8


@dataclass(frozen=True)
class Entry:
    """What the header says of one tensor: its bytes are [begin, end) of the data."""

    dtype: Dtype
    shape: Shape
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that holds together.

    Attributes:
        metadata: the strings under `__metadata__`.
        entries: the tensors by name, in the header's order.
        data_start: the byte of the file at which the data begins.
    """

    metadata: dict[str, str]
    entries: dict[str, Entry]
    data_start: int


def read_header(file: BinaryIO, path: Path, size: int) -> Header:
    """Read the header of a file of `size` bytes, and nothing after it.

    Raises:
        CheckpointError: any rule of section 2 of the page is broken; the message names the tensor, the byte and
            the limit.
    """
    if size < LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: {size} bytes long; a safetensors file begins with {LENGTH_BYTES} bytes for its header's length"
        )
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: bytes 0–7 give a header of {length} bytes; the limit is {MAX_HEADER}: not a safetensors file?"
        )
    if length > size - LENGTH_BYTES:
        raise CheckpointError(
            f"{path}: bytes 0–7 give a header of {length} bytes, but only {size - LENGTH_BYTES} follow: "
            "truncated, or not a safetensors file"
        )
    raw = file.read(length)
    if len(raw) != length:
        raise CheckpointError(f"{path}: the header ends after {len(raw)} of {length} bytes: the file is being changed")
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path}: the header must begin with '{{' at byte {LENGTH_BYTES}; {raw[:8]!r} found")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: the header is not UTF-8: {error.reason} at byte {LENGTH_BYTES + error.start}"
        ) from None
    metadata, entries = _parse(HeaderReader(text, str(path), LENGTH_BYTES))
    _check_extents(entries, path, size - LENGTH_BYTES - length)
    return Header(metadata, entries, LENGTH_BYTES + length)


def _parse(reader: HeaderReader) -> tuple[dict[str, str], dict[str, Entry]]:
    metadata: dict[str, str] = {}
    entries: dict[str, Entry] = {}
    for name in reader.members("the header"):
        if name == "__metadata__":
            for key in reader.members("__metadata__"):
                metadata[key] = reader.string(f"__metadata__[{quoted(key)}]")
        elif name:
            entries[name] = _parse_entry(reader, f"tensor {quoted(name)}")
        else:
            reader.fail("a tensor has an empty name")
    reader.end()
    return metadata, entries


def _parse_entry(reader: HeaderReader, what: str) -> Entry:
    dtype: Dtype | None = None
    shape: Shape | None = None
    offsets: tuple[int, ...] | None = None
    for field in reader.members(what):
        match field:
            case "dtype":
                dtype = _known_dtype(reader, reader.string(f"{what}: dtype"), what)
            case "shape":
                shape = reader.integers(f"{what}: shape")
            case "data_offsets":
                offsets = reader.integers(f"{what}: data_offsets")
            case _:
                reader.fail(f"{what}: unknown field {quoted(field)}; a tensor has dtype, shape and data_offsets")
    if dtype is None or shape is None or offsets is None:
        missing = [n for n, v in (("dtype", dtype), ("shape", shape), ("data_offsets", offsets)) if v is None]
        reader.fail(f"{what}: no {' and no '.join(missing)}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        reader.fail(f"{what}: data_offsets {list(offsets)} must be [begin, end] with begin ≤ end")
    # Zeros aside, so that a shape which NumPy could not even index is refused for an empty tensor too.
    if math.prod(d for d in shape if d) * dtype.stored.itemsize > MAX_INTEGER:
        reader.fail(f"{what}: shape {list(shape)} of {dtype.name} is more than {MAX_INTEGER} bytes")
    nbytes = math.prod(shape) * dtype.stored.itemsize
    if offsets[1] - offsets[0] != nbytes:
        reader.fail(
            f"{what}: shape {list(shape)} of {dtype.name} is {nbytes} bytes; "
            f"data_offsets {list(offsets)} give {offsets[1] - offsets[0]}"
        )
    return Entry(dtype, shape, *offsets)


def _known_dtype(reader: HeaderReader, name: str, what: str) -> Dtype:
    if name not in DTYPES:
        try:
            raise unknown_name("dtype", name[:40], DTYPES)
        except UnknownNameError as error:
            reader.fail(f"{what}: {error}")
    return DTYPES[name]


def _check_extents(entries: dict[str, Entry], path: Path, data: int) -> None:
    """The tensors tile the data: no gap, no overlap, nothing before, between or after them."""
    position, previous = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position or entry.end > data:
            extent = f"{path}: tensor {quoted(name)}: data_offsets [{entry.begin}, {entry.end}]"
            neighbour = f"tensor {quoted(previous)}, which ends at {position}" if previous else "the start of the data"
            if entry.end > data:
                raise CheckpointError(f"{extent} go past the {data} bytes of data: the file is truncated or wrong")
            if entry.begin < position:
                raise CheckpointError(f"{extent} overlap {neighbour}")
            raise CheckpointError(f"{extent} leave a gap of {entry.begin - position} bytes after {neighbour}")
        position, previous = entry.end, name
    if position != data:
        raise CheckpointError(
            f"{path}: {data - position} bytes follow the last tensor, which ends at {position} of {data} bytes of data"
        )
