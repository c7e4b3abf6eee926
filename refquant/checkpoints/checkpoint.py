"""What a checkpoint and its tensors are, whatever file they come from."""

import difflib
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refquant.arrays import Array, Float32, Shape
from refquant.checkpoints.dtypes import DTYPES
from refquant.checkpoints.text import quoted
from refquant.errors import NonFiniteError, RefquantError, UnknownNameError


class UnknownTensorError(UnknownNameError, KeyError):
    """A tensor that the checkpoint does not have; also a KeyError, so that a checkpoint is a proper Mapping."""

    def __str__(self) -> str:
        return Exception.__str__(self)  # KeyError would print the message in quotes


@dataclass(frozen=True, eq=False)
class CheckpointTensor(ABC):
    """A stored tensor; nothing is read from the file before `numpy` or `dequantize`, and then only what is looked at.

    Attributes:
        name: its name in the checkpoint.
        dtype: the element type as the file's format names it ("F32", "BF16", "F8_E4M3", "I64"; of GGUF also "Q4_K", …).
        shape: as stored, in C order.
        path: the file that holds it.
    """

    name: str
    dtype: str
    shape: Shape
    path: Path

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes in the file."""

    @abstractmethod
    def numpy(self) -> Array:
        """The stored elements, as a read-only view of the file where the machine's byte order is the file's.

        Returns:
            The native array of the tensor's shape; BF16 as uint16 codes and F8 as uint8 codes, since NumPy has no
            such types; of block types the bytes of every row, uint8 (…, bytes of a row).

        Raises:
            CheckpointError: a BOOL tensor with a byte that is neither 0 nor 1; a block type whose big-endian form
                nobody has defined.
        """

    def dequantize(self) -> Float32:
        """The tensor as float32.

        Returns:
            F32: a read-only view of the file. F16, BF16 and F8: exact, in new memory; NaN and infinities stay what
            they are. F64: each element rounded once, ties to even. Block types: as their format decodes them.

        Raises:
            RefquantError: integers or booleans, which are not weights by themselves.
            NonFiniteError: a finite F64 beyond float32's range.
        """
        kind = DTYPES[self.dtype]
        array = self.numpy()
        if kind.float_format is not None:
            return kind.float_format.decode(array.view(kind.float_format.code_dtype))
        if kind.stored.kind != "f":
            raise RefquantError(
                f"{self.path}: tensor {quoted(self.name)} is {self.dtype}: integers mean nothing as weights without "
                "their format; .numpy() gives them as stored"
            )
        with np.errstate(over="ignore"):  # reported below, with its index
            narrowed = array.astype(np.float32, copy=False)
        lost = np.isinf(narrowed) & np.isfinite(array) if kind.name == "F64" else np.zeros((), np.bool_)
        if lost.any():
            index = tuple(int(i) for i in np.unravel_index(int(np.argmax(lost)), lost.shape))
            raise NonFiniteError(
                f"{self.path}: tensor {quoted(self.name)}: {array[index]} at index {index} is beyond float32's "
                f"range (at most {np.finfo(np.float32).max:.9g}); .numpy() gives the F64 values"
            )
        return narrowed


class Checkpoint(Mapping[str, CheckpointTensor]):
    """The tensors of a checkpoint by name, in the order of its header or index.

    The files stay mapped while the checkpoint or any array from it is alive. As with every memory map, a file that
    another program shortens meanwhile takes the process with it.

    Attributes:
        path: what was opened.
        metadata: of a safetensors file `__metadata__` (of several files, see spec/safetensors.md, section 4); of a
            GGUF file its key-value pairs, each decoded when it is asked for.
    """

    def __init__(self, path: Path, tensors: Mapping[str, CheckpointTensor], metadata: Mapping[str, object]) -> None:
        self.path = path
        self.metadata = metadata
        self._tensors = dict(tensors)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the tensors, sorted."""
        return tuple(sorted({tensor.path for tensor in self._tensors.values()}))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def __getitem__(self, name: str) -> CheckpointTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise self._unknown(str(name)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"<Checkpoint {str(self.path)!r}: {len(self)} tensors, {self.nbytes} bytes>"

    def _unknown(self, name: str) -> UnknownTensorError:
        near = difflib.get_close_matches(name, self._tensors, n=3, cutoff=0.6)
        if near:
            hint = f"did you mean {' or '.join(quoted(n) for n in near)}?"
        elif self._tensors:
            hint = f"it has {len(self)} tensors, such as {', '.join(map(quoted, itertools.islice(self._tensors, 3)))}"
        else:
            hint = "it has no tensors"
        return UnknownTensorError(f"{self.path}: no tensor {quoted(name)}; {hint}")
