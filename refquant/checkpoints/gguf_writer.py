"""Writing GGUF files: one tensor at a time, aligned, and whole or not at all (spec/gguf.md, section 6)."""

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refquant.arrays import Array, Shape
from refquant.checkpoints.atomic import replacing
from refquant.checkpoints.dtypes import DTYPES
from refquant.checkpoints.ggml_types import BY_NAME, TensorType
from refquant.checkpoints.gguf_encoding import alignment_of, encode_metadata, encode_name
from refquant.checkpoints.gguf_header import LAST_VERSION, MAGIC, MAX_DIMENSIONS, MAX_INTEGER, MAX_NAME
from refquant.checkpoints.gguf_values import Value
from refquant.checkpoints.text import quoted
from refquant.errors import RefquantError, unknown_name

Progress = Callable[[int], object]  # told how many bytes of tensors have been written since the last time


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written, whose data is asked for when its turn comes and dropped after.

    Attributes:
        name: at most 63 bytes of UTF-8.
        dtype: ggml's type name ("F32", "Q4_K").
        shape: in C order, one to four dimensions of at least 1; a row is whole blocks.
        data: gives the bytes: uint8, or of plain numbers an array of their type (BF16: its codes, uint16). Its shape
            does not matter, its number of bytes does.
    """

    name: str
    dtype: str
    shape: Shape
    data: Callable[[], Array] = field(repr=False)

    @property
    def type(self) -> TensorType:
        """ggml's type: its number and block size."""
        return BY_NAME[self.dtype]

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) // self.type.block_size * self.type.block_bytes


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Iterable[TensorSource],
    progress: Progress | None = None,
) -> None:
    """Write one GGUF file: version 3, little-endian.

    Memory: the header, and one tensor at a time.

    Args:
        path: the file; one that is there is replaced when the new one is complete, not before.
        metadata: values with their types, written in this order. `general.alignment` is obeyed.
        tensors: written in this order.
        progress: called with the bytes of each tensor once it is written.

    Raises:
        RefquantError: a key, value, name, type or shape that the format does not hold, two tensors of one name, data
            of another size or type than its tensor's. Nothing is left behind.
        OSError: the system does not let us write it.

    Source: spec/gguf.md; ggml's `gguf_write_to_file`.
    """
    tensors = list(tensors)
    header = encode_header(metadata, tensors)
    with replacing(Path(path)) as file:
        file.write(header)
        write_data(file, tensors, alignment_of(metadata), progress)


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorSource]) -> bytes:
    """Everything before the data, with the padding that aligns it.

    Raises:
        RefquantError: as `write_gguf`.
    """
    alignment = alignment_of(metadata)
    encoded = [MAGIC, struct.pack("<IQQ", LAST_VERSION, len(tensors), len(metadata)), encode_metadata(metadata)]
    offset, names = 0, set[str]()
    for tensor in tensors:
        if tensor.name in names:
            raise RefquantError(f"tensor {quoted(tensor.name)} given twice")
        names.add(tensor.name)
        encoded.append(_encode_info(tensor, offset))
        offset += _padded(tensor.nbytes, alignment)
    header = b"".join(encoded)
    return header + bytes(_padded(len(header), alignment) - len(header))


def write_data(file: BinaryIO, tensors: Iterable[TensorSource], alignment: int, progress: Progress | None) -> None:
    """Every tensor's bytes, each padded with zeros to the alignment."""
    for tensor in tensors:
        file.write(_little_endian_bytes(tensor))
        file.write(bytes(_padded(tensor.nbytes, alignment) - tensor.nbytes))
        if progress is not None:
            progress(tensor.nbytes)


def _encode_info(tensor: TensorSource, offset: int) -> bytes:
    what = f"tensor {quoted(tensor.name)}"
    name = encode_name(tensor.name, "tensor", MAX_NAME)
    if tensor.dtype not in BY_NAME:
        raise unknown_name(f"type of {what}", tensor.dtype, BY_NAME)
    if not 1 <= len(tensor.shape) <= MAX_DIMENSIONS or min(tensor.shape) < 1:
        raise RefquantError(
            f"{what}: shape {tensor.shape} given; a GGUF tensor has 1 to {MAX_DIMENSIONS} dimensions of at least 1"
        )
    if tensor.shape[-1] % tensor.type.block_size:
        raise RefquantError(
            f"{what}: shape {tensor.shape} given; {tensor.dtype} stores rows in blocks of {tensor.type.block_size}"
        )
    if max(math.prod(tensor.shape), tensor.nbytes) > MAX_INTEGER:
        raise RefquantError(f"{what}: shape {tensor.shape} given; weights and bytes are limited to {MAX_INTEGER}")
    dimensions = len(tensor.shape)
    return name + struct.pack(f"<I{dimensions}QIQ", dimensions, *reversed(tensor.shape), tensor.type.type_id, offset)


def _little_endian_bytes(tensor: TensorSource) -> memoryview:
    array = tensor.data()
    plain = DTYPES[tensor.dtype].stored if tensor.dtype in DTYPES else np.dtype(np.uint8)
    if array.nbytes != tensor.nbytes or array.dtype.newbyteorder("=") not in (np.uint8, plain.newbyteorder("=")):
        raise RefquantError(
            f"tensor {quoted(tensor.name)}: data of {array.dtype}, {array.nbytes} bytes, given; {tensor.dtype} of "
            f"shape {tensor.shape} is {tensor.nbytes} bytes of uint8{'' if plain == np.uint8 else f' or {plain.name}'}"
        )
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
