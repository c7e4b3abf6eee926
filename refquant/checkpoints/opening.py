"""Finding out what a path is, and opening it."""

import os
from pathlib import Path
from typing import Final

from refquant.checkpoints.checkpoint import Checkpoint
from refquant.checkpoints.gguf import GgufCheckpoint
from refquant.checkpoints.gguf_header import MAGIC
from refquant.checkpoints.gguf_split import one_of_model, open_gguf
from refquant.checkpoints.safetensors import read_file
from refquant.checkpoints.sharded import read_files, read_index
from refquant.errors import CheckpointError

INDEX_SUFFIX: Final = ".safetensors.index.json"
PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PICKLE: Final = "a pickle: loading one runs the code in it, so refquant does not; save the model as safetensors"


def open(path: str | os.PathLike[str]) -> Checkpoint:  # noqa: A001  # `refquant.open`, the design's public name
    """Open a checkpoint: its headers are read and checked, its data is mapped and not touched.

    Args:
        path: a `.safetensors` file, a `.safetensors.index.json`, a GGUF file, or a folder. In a folder the first of
            these is taken: `model.safetensors`, `model.safetensors.index.json`, the only `*.safetensors.index.json`,
            all `*.safetensors` together, the only GGUF file or split model.

    Returns:
        A Mapping from names to tensors.

    Raises:
        CheckpointError: nothing there, nothing that can be read, or a file that breaks its format's rules; the
            message names the file, the tensor or field, the byte and the limit.
        OSError: the system does not let us read it.

    Source: spec/safetensors.md, spec/gguf.md.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".json":
        return read_index(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.suffix != ".safetensors" and path.is_file():
        start = _start_of(path)
        if start.startswith(MAGIC):
            return open_gguf(path)
        _refuse_other_kinds(path, start)
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
    ggufs = sorted(folder.glob("*.gguf"))
    models = {one_of_model(file) for file in ggufs}
    if len(models) == 1:
        opened = open_gguf(ggufs[0])
        return GgufCheckpoint(folder, opened.tensors, opened.header)
    if models:
        raise CheckpointError(f"{folder}: several GGUF models ({', '.join(sorted(models))}); open one by its path")
    found = f"{folder}: no model.safetensors, no *{INDEX_SUFFIX}, no *.safetensors and no *.gguf in this folder"
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLE_SUFFIXES:
            raise CheckpointError(f"{found}; {path.name} is {PICKLE}")
    raise CheckpointError(found)


def _as(folder: Path, checkpoint: Checkpoint) -> Checkpoint:
    return Checkpoint(folder, checkpoint, checkpoint.metadata)


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Raise for a file whose first bytes or suffix say what it is, if that is not safetensors."""
    if path.suffix in PICKLE_SUFFIXES or start.startswith((b"PK\x03\x04", *(bytes([0x80, n]) for n in range(2, 6)))):
        raise CheckpointError(f"{path}: {PICKLE}")
    if start[8:] != b"{":
        raise CheckpointError(
            f"{path}: not a checkpoint that refquant reads: a .safetensors file, a {INDEX_SUFFIX}, a .gguf file or "
            "a folder with one"
        )
