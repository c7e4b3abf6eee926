"""One GGUF file as a checkpoint (spec/gguf.md)."""

import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refquant.arrays import Array, Float32, UInt8
from refquant.checkpoints.checkpoint import Checkpoint, CheckpointTensor
from refquant.checkpoints.dtypes import DTYPES
from refquant.checkpoints.ggml_types import BY_NAME, TensorType
from refquant.checkpoints.gguf_header import Header, read_header
from refquant.checkpoints.gguf_metadata import Metadata
from refquant.checkpoints.gguf_values import Buffer, ByteOrder, Value
from refquant.checkpoints.gguf_writer import TensorSource
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError, RefquantError
from refquant.formats.base import QuantizedTensor
from refquant.formats.registry import formats, get_format


@dataclass(frozen=True, eq=False)
class GgufTensor(CheckpointTensor):
    """A tensor of a GGUF file: rows of elements, or of ggml's blocks."""

    _buffer: Buffer = field(repr=False)
    _offset: int = field(repr=False)
    _byte_order: ByteOrder = field(repr=False)

    @property
    def type(self) -> TensorType:
        """ggml's type: its number and block size."""
        return BY_NAME[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, which is whole blocks."""
        return self.shape[-1] // self.type.block_size * self.type.block_bytes

    @property
    def nbytes(self) -> int:
        return self.size // self.type.block_size * self.type.block_bytes

    def numpy(self) -> Array:
        if self.dtype not in DTYPES:
            return self._blocks()
        stored = DTYPES[self.dtype].stored
        elements = np.ndarray(self.shape, stored.newbyteorder(self._byte_order), self._buffer, self._offset)
        return elements.astype(stored.newbyteorder("="), copy=False)

    def raw(self) -> UInt8:
        """The data as a little-endian file stores it: uint8 (bytes,), a view of the file if that is little-endian."""
        if self._byte_order == "little":
            return np.ndarray((self.nbytes,), np.uint8, self._buffer, self._offset)
        array = self.numpy()
        return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)

    def source(self) -> TensorSource:
        """The tensor as it is, for the writer."""
        return TensorSource(self.name, self.dtype, self.shape, self.raw)

    def quantized(self) -> QuantizedTensor:
        """The blocks with their format; nothing is copied from a little-endian file.

        Raises:
            RefquantError: a type that has no format: plain numbers, or one that this version does not decode.
        """
        name = self.dtype.lower()
        if name not in formats():
            raise RefquantError(
                f"{self.path}: tensor {quoted(self.name)} is {self.dtype}, which is no quantized format of refquant; "
                ".numpy() gives it as stored"
            )
        blocks = self.raw().reshape(*self.shape[:-1], self.row_bytes)
        return QuantizedTensor(get_format(name), self.shape, {"blocks": blocks})

    def dequantize(self) -> Float32:
        return super().dequantize() if self.dtype in DTYPES else self.quantized().dequantize()

    def _blocks(self) -> UInt8:
        """The bytes of every row, uint8 (…, row bytes), as a little-endian file has them."""
        shape = (*self.shape[:-1], self.row_bytes)
        stored = np.ndarray(shape, np.uint8, self._buffer, self._offset)
        if self._byte_order == "little" or self.type.halves == ():
            return stored
        if self.type.halves is None:
            raise CheckpointError(
                f"{self.path}: tensor {quoted(self.name)} is big-endian {self.dtype}; how its blocks are swapped is "
                f"defined for {', '.join(kind.name for kind in BY_NAME.values() if kind.halves is not None)} alone"
            )
        blocks = stored.reshape(-1, self.type.block_bytes).copy()  # (blocks, bytes of a block)
        for at in self.type.halves:
            blocks[:, [at, at + 1]] = blocks[:, [at + 1, at]]
        return blocks.reshape(shape)


class GgufCheckpoint(Checkpoint):
    """The tensors of a GGUF file, or of all files of a split one.

    Attributes:
        tensors: by name.
        metadata: values by key, as plain Python values; `metadata.typed(key)` gives one with its type.
        header: version, byte order, alignment and places; of a split model, its first file's.
    """

    metadata: Metadata

    def __init__(self, path: Path, tensors: Mapping[str, GgufTensor], header: Header) -> None:
        super().__init__(path, tensors, header.metadata)
        self.header = header
        self.tensors = dict(tensors)

    @property
    def typed_metadata(self) -> dict[str, Value]:
        """The metadata with the types it is stored as, in the order of the file: what the writer takes."""
        return {key: self.metadata.typed(key) for key in self.metadata}


def read_file(path: Path) -> GgufCheckpoint:
    """Map a GGUF file and check its header; its data is not touched.

    Raises:
        CheckpointError: not a regular file, or a header that breaks a rule.
        OSError: the file cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: opening a pipe would wait for a writer
        raise CheckpointError(f"{path}: not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        buffer = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    header = read_header(buffer, path)
    tensors = {
        name: GgufTensor(name, entry.type.name, entry.shape, path, buffer, entry.start, header.byte_order)
        for name, entry in header.entries.items()
    }
    return GgufCheckpoint(path, tensors, header)
