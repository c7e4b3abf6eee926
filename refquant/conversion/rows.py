"""Rows of tensors: from what a file stores to float32, and from float32 to what a file will store."""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np

from refquant.arrays import Array, Float32, UInt8, check_finite
from refquant.checkpoints.gguf import GgufTensor
from refquant.conversion.plan import PlannedTensor
from refquant.conversion.source import SourceTensor
from refquant.errors import NonFiniteError, ScaleOverflowError
from refquant.formats.base import QuantizedTensor, encode
from refquant.formats.registry import formats, get_format

_WEIGHTS_AT_ONCE: Final = 1 << 20
_INTEGERS: Final = ("I8", "I16", "I32", "I64")

ReadRows = Callable[[int, int], Float32]
Progress = Callable[[int], object]  # told of how many more weights are done


@dataclass(frozen=True)
class Slab:
    """Some rows of one matrix of a tensor.

    Attributes:
        matrix: which of the tensor's matrices.
        start: the first row, counted over all matrices.
        stop: the row after the last.
    """

    matrix: int
    start: int
    stop: int


def converted(
    tensor: SourceTensor, planned: PlannedTensor, importance: Float32 | None, threads: int, progress: Progress
) -> Array:
    """The bytes that the output stores, uint8; float32 for F32.

    Slabs of rows are encoded one by one, or `threads` of them at a time, and each row's bytes depend on that row, the
    importance and nothing else.

    Args:
        tensor: the input's.
        planned: what becomes of it.
        importance: float32 (matrices, n), or None.
        threads: how many slabs at a time.
        progress: told of the weights of each slab that is done.

    Raises:
        NonFiniteError: NaN or infinity in the tensor, copied or converted.
        ScaleOverflowError: a scale that its type does not hold.
        RefquantError: a type that wants an importance matrix and has none.
    """
    n, rows = planned.shape[-1], planned.size // planned.shape[-1]
    read = row_reader(tensor)
    out = _empty(planned, rows)

    def fill(slab: Slab) -> int:
        weights = read(slab.start, slab.stop)
        columns = None if importance is None else importance[slab.matrix]
        out[slab.start : slab.stop] = _encoded(weights, planned.new, tensor.name, columns)
        return weights.size

    try:
        _run(fill, slabs(planned, rows, n), threads, progress)
    except (NonFiniteError, ScaleOverflowError):  # the same again in one piece, for the index in the tensor
        _encoded(tensor.dequantize().reshape(planned.shape), planned.new, tensor.name, importance)
        raise
    return out


def copied(tensor: SourceTensor, planned: PlannedTensor, threads: int, progress: Progress) -> Array:
    """The tensor as it is stored, after a look at every number in it.

    Raises:
        NonFiniteError: NaN or infinity in it, as an element or by a scale.
    """
    if tensor.dtype in _INTEGERS or (tensor.dtype.lower() not in formats() and tensor.dtype not in ("F32", "F64")):
        progress(planned.size)  # nothing in it that could fail to be finite, or that this version could look into
    else:
        n, rows = planned.shape[-1], planned.size // planned.shape[-1]
        read = row_reader(tensor)

        def look(slab: Slab) -> int:
            weights = read(slab.start, slab.stop)
            if not np.isfinite(weights).all():
                check_finite(tensor.dequantize(), f"{tensor.path}: tensor {tensor.name!r}")
            return weights.size

        _run(look, slabs(planned, rows, n), threads, progress)
    return tensor.raw() if isinstance(tensor, GgufTensor) else tensor.numpy()


def row_reader(tensor: SourceTensor) -> ReadRows:
    """Gives rows start to stop of a tensor, all its matrices one below the other, as float32."""
    n = tensor.shape[-1]
    if isinstance(tensor, GgufTensor) and tensor.dtype.lower() in formats():
        stored = tensor.quantized()
        blocks = stored.parts["blocks"].reshape(-1, tensor.row_bytes)

        def read(start: int, stop: int) -> Float32:
            return QuantizedTensor(stored.format, (stop - start, n), {"blocks": blocks[start:stop]}).dequantize()

        return read
    whole = tensor.dequantize().reshape(-1, n)  # F32 of a GGUF is a view of the file
    return lambda start, stop: whole[start:stop]


def slabs(planned: PlannedTensor, rows: int, n: int) -> Iterator[Slab]:
    """Cut a tensor into runs of rows that lie in one matrix."""
    rows_each = planned.shape[-2] if len(planned.shape) > 1 else 1
    step = max(1, _WEIGHTS_AT_ONCE // n)
    for matrix, first in enumerate(range(0, rows, rows_each)):
        for start in range(first, first + rows_each, step):
            yield Slab(matrix, start, min(start + step, first + rows_each))


def _empty(planned: PlannedTensor, rows: int) -> Array:
    if planned.new == "F32":
        return np.empty((rows, planned.shape[-1]), np.float32)
    return np.empty((rows, planned.nbytes // rows), np.uint8)


def _encoded(weights: Float32, kind: str, name: str, importance: Float32 | None) -> Float32 | UInt8:
    if kind == "F32":
        check_finite(weights, name)
        return weights
    return encode(weights, get_format(kind.lower()), name, imatrix=importance).parts["blocks"]


def _run(work: Callable[[Slab], int], todo: Iterator[Slab], threads: int, progress: Progress) -> None:
    if threads == 1:
        for slab in todo:
            progress(work(slab))
        return
    with ThreadPoolExecutor(threads) as pool:
        while some := list(itertools.islice(todo, 4 * threads)):  # so that an error ends the work soon
            for size in pool.map(work, some):
                progress(size)
