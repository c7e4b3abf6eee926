"""What a conversion reads: an opened GGUF, or a Hugging Face folder seen as one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from refquant.arrays import Array, Float32, Shape
from refquant.checkpoints.gguf_values import Value


class SourceTensor(Protocol):
    """A tensor with ggml's name of its type in upper case."""

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
    """Tensors and metadata in GGUF's terms."""

    @property
    def typed_metadata(self) -> Mapping[str, Value]: ...
    @property
    def tensors(self) -> Mapping[str, SourceTensor]: ...
