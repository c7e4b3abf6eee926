"""One safetensors file as a checkpoint (spec/safetensors.md, section 3)."""

import mmap
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refquant.arrays import Array
from refquant.checkpoints.checkpoint import Checkpoint, CheckpointTensor
from refquant.checkpoints.dtypes import DTYPES
from refquant.checkpoints.safetensors_header import read_header
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class SafetensorsTensor(CheckpointTensor):
    """A tensor of a safetensors file: elements in C order."""

    _map: mmap.mmap = field(repr=False)
    _offset: int = field(repr=False)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].stored.itemsize

    def numpy(self) -> Array:
        stored = DTYPES[self.dtype].stored
        array = np.ndarray(self.shape, stored, buffer=self._map, offset=self._offset)
        if stored.kind == "b" and self.size and int(array.view(np.uint8).max()) > 1:
            first = int(np.argmax(array.view(np.uint8).ravel() > 1))
            raise CheckpointError(
                f"{self.path}: tensor {quoted(self.name)}: byte {self._offset + first} of the file is "
                f"{self._map[self._offset + first]}; a BOOL is 0 or 1"
            )
        return array.astype(stored.newbyteorder("="), copy=False)


def read_file(path: Path) -> Checkpoint:
    """Map a safetensors file and check its header; its data is not touched.

    Raises:
        CheckpointError: not a regular file, or a header that breaks a rule.
        OSError: the file cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: opening a pipe would wait for a writer
        raise CheckpointError(f"{path}: not a regular file")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header = read_header(file, path, size)
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    tensors = {
        name: SafetensorsTensor(name, entry.dtype.name, entry.shape, path, mapped, header.data_start + entry.begin)
        for name, entry in header.entries.items()
    }
    return Checkpoint(path, tensors, header.metadata)
