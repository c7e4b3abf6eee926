"""What a conversion reads: an opened GGUF, or a Hugging Face folder seen as one."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from refquant.arrays import Array, Float32, Shape
from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.gguf import GgufCheckpoint
from refquant.checkpoints.gguf_values import Value
from refquant.conversion.hugging_face import HuggingFaceGguf, as_gguf
from refquant.errors import CheckpointError


class SourceTensor(Protocol):
    """A tensor whose type is named as ggml names it, in upper case."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def path(self) -> Path: ...
    def numpy(self) -> Array: ...
    def dequantize(self) -> Float32: ...


class Source(Protocol):
    """A model in GGUF's terms: its tensors by name, and its metadata with the types they are stored as."""

    @property
    def path(self) -> Path: ...
    @property
    def typed_metadata(self) -> Mapping[str, Value]: ...
    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...


def open_source(path: str | os.PathLike[str], outtype: str = "auto") -> Source:
    """Open a GGUF file, any part of a split model, or a Hugging Face folder.

    Args:
        path: the file or folder.
        outtype: of a folder, how matrices are stored before they are quantized, as llama.cpp's converter calls it:
            "f32", "f16", "bf16", or "auto".

    Raises:
        CheckpointError: nothing there that can be read.
        ModelError: a folder whose architecture has no form in GGUF here.
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return as_gguf(path, outtype)
    opened = open_checkpoint(path)
    if not isinstance(opened, GgufCheckpoint):
        raise CheckpointError(
            f"{path}: not a model in GGUF, nor a Hugging Face folder with its config.json; a conversion starts from "
            "one of them"
        )
    return opened


def lost_from(source: Source) -> tuple[str, ...]:
    """In words, what of a Hugging Face folder has no form in GGUF; a GGUF file loses nothing."""
    return source.lost if isinstance(source, HuggingFaceGguf) else ()


def files_of(source: Source) -> tuple[Path, ...]:
    """The files that hold the tensors, in the order of their first tensor."""
    return tuple(dict.fromkeys(tensor.path for tensor in source.tensors.values()))
