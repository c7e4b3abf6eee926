"""One safetensors file as a checkpoint (spec/safetensors.md, section 3)."""

import mmap
import os
import stat
from pathlib import Path

from refquant.checkpoints.checkpoint import Checkpoint, CheckpointTensor
from refquant.checkpoints.safetensors_header import read_header
from refquant.errors import CheckpointError


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
        name: CheckpointTensor(name, entry.dtype.name, entry.shape, path, mapped, header.data_start + entry.begin)
        for name, entry in header.entries.items()
    }
    return Checkpoint(path, tensors, header.metadata)
