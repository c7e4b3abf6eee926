"""Importance matrix files of llama.cpp, of both kinds (spec/imatrix.md)."""

import os
from pathlib import Path

from refquant.checkpoints import imatrix_gguf, imatrix_legacy
from refquant.checkpoints.imatrix_record import Imatrix, ImatrixEntry
from refquant.errors import CheckpointError, RefquantError

__all__ = ["Imatrix", "ImatrixEntry", "read_imatrix", "write_imatrix"]


def read_imatrix(path: str | os.PathLike[str]) -> Imatrix:
    """Read an importance matrix of either kind; the first four bytes say which.

    Raises:
        CheckpointError: no such file, or one that breaks a rule of spec/imatrix.md; names the entry, byte and limit.
        OSError: the system does not let us read it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file" if not path.exists() else f"{path}: not a regular file")
    with path.open("rb") as file:
        is_gguf = file.read(4) == b"GGUF"
    return imatrix_gguf.read(path) if is_gguf else imatrix_legacy.read(path)


def write_imatrix(path: str | os.PathLike[str], imatrix: Imatrix) -> None:
    """Write the GGUF kind, or the legacy kind where the name ends in `.dat`; the file appears whole or not at all.

    Raises:
        RefquantError: no entries; a GGUF of an imatrix that counts chunks (see `Imatrix.in_tokens`).
        OSError: the file cannot be written.
    """
    path = Path(path)
    if not imatrix.entries:
        raise RefquantError(f"{path}: the importance matrix has no entries; there is nothing to write")
    (imatrix_legacy if path.suffix == ".dat" else imatrix_gguf).write(path, imatrix)
