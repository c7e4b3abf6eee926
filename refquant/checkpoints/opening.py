"""Finding out what a path is, and opening it."""

import os
from pathlib import Path
from typing import Final

from refquant.checkpoints.checkpoint import Checkpoint
from refquant.checkpoints.safetensors import read_file
from refquant.checkpoints.sharded import read_files, read_index
from refquant.errors import CheckpointError

INDEX_SUFFIX: Final = ".safetensors.index.json"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PICKLE: Final = "a pickle: loading one runs the code in it, so refquant does not; save the model as safetensors"
GGUF: Final = "a GGUF file, which is not readable by this version of refquant"


def open(path: str | os.PathLike[str]) -> Checkpoint:  # noqa: A001  # `refquant.open`, the design's public name
    """Open a checkpoint: its headers are read and checked, its data is mapped and not touched.

    Args:
        path: a `.safetensors` file, a `.safetensors.index.json`, or a folder. In a folder the first of these is
            taken: `model.safetensors`, `model.safetensors.index.json`, the only `*.safetensors.index.json`, all
            `*.safetensors` together.

    Returns:
        A Mapping from names to tensors.

    Raises:
        CheckpointError: nothing there, nothing that can be read, or a file that breaks its format's rules; the
            message names the file, the tensor or field, the byte and the limit.
        OSError: the system does not let us read it.

    Source: spec/safetensors.md.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".json":
        return read_index(path)
    if path.suffix != ".safetensors" and path.is_file():
        _refuse_other_kinds(path)
    return read_file(path)


def _open_folder(folder: Path) -> Checkpoint:
    single, index = folder / "model.safetensors", folder / f"model{INDEX_SUFFIX}"
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    files = sorted(folder.glob("*.safetensors"))
    if single.exists():
        return _as(folder, read_file(single))
    if index.exists():
        return _as(folder, read_index(index))
    if len(indices) == 1:
        return _as(folder, read_index(indices[0]))
    if len(indices) > 1:
        names = ", ".join(path.name for path in indices)
        raise CheckpointError(f"{folder}: several indices ({names}); open one of them by its path")
    if files:
        return read_files(folder, files)
    found = f"{folder}: no model.safetensors, no *{INDEX_SUFFIX} and no *.safetensors in this folder"
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(f"{found}; {path.name} is {PICKLE}")
        if path.suffix == ".gguf":
            raise CheckpointError(f"{found}; {path.name} is {GGUF}")
    raise CheckpointError(found)


def _as(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(folder, checkpoint, checkpoint.metadata)


def _refuse_other_kinds(path: Path) -> None:
    """Raise for a file whose first bytes or suffix say what it is, if that is not safetensors."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"GGUF") or path.suffix == ".gguf":
        raise CheckpointError(f"{path}: {GGUF}")
    if path.suffix in PICKLE_SUFFIXES or start.startswith((b"PK\x03\x04", *(bytes([0x80, n]) for n in range(2, 6)))):
        raise CheckpointError(f"{path}: {PICKLE}")
    if start[8:] != b"{":
        raise CheckpointError(
            f"{path}: not a checkpoint that refquant reads: a .safetensors file, a {INDEX_SUFFIX} or a folder with one"
        )
