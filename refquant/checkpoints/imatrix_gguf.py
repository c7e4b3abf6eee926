"""llama.cpp's present kind of importance matrix file, a GGUF (spec/imatrix.md, section 2).

For each entry two float32 tensors: `<name>.in_sum2`, the sums, (matrices, n), and `<name>.counts`, (matrices, 1).
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from refquant.arrays import Array, Float32, Int64
from refquant.checkpoints import gguf_values
from refquant.checkpoints.gguf import GgufCheckpoint, GgufTensor, read_file
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.checkpoints.imatrix_record import Imatrix, ImatrixEntry
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError, RefquantError

DATASETS: Final = "imatrix.datasets"
CHUNK_COUNT: Final = "imatrix.chunk_count"
CHUNK_SIZE: Final = "imatrix.chunk_size"
_SUMS: Final = ".in_sum2"
_COUNTS: Final = ".counts"


def read(path: Path) -> Imatrix:
    """Read a GGUF of importances; each entry's numbers are copied out of the file.

    Raises:
        CheckpointError: a malformed file, a key or half of an entry that is missing, a tensor that is not float32,
            sums that the counts do not divide, a count that is negative or not a number.
    """
    file = read_file(path)
    datasets = file.metadata.get(DATASETS)
    if DATASETS not in file.metadata or file.metadata.typed(DATASETS).type_name != "[str]":
        _missing(path, DATASETS, "an array of strings")
    names = {
        name.removesuffix(suffix): None
        for name in file.tensors
        for suffix in (_SUMS, _COUNTS)
        if name.endswith(suffix) and name != suffix
    }
    if not names:
        raise CheckpointError(f"{path}: no tensor ends in {_SUMS}; this GGUF holds no importance matrix")
    return Imatrix(
        {name: _read_entry(file, name) for name in names},
        tuple(datasets),  # type: ignore[arg-type]  # an array of strings, as checked
        _count_of(file, CHUNK_COUNT),
        _count_of(file, CHUNK_SIZE),
    )


def write(path: Path, imatrix: Imatrix) -> None:
    """Write a GGUF as llama-imatrix does: entries sorted by name, counts rounded to float32.

    Raises:
        RefquantError: an imatrix that counts chunks, or a name that is too long.
    """
    if imatrix.chunk_size < 1:
        raise RefquantError(
            f"{path}: an importance matrix that counts chunks, as one from a legacy file does, has no place in a "
            "GGUF: give the tokens of a chunk to in_tokens() first"
        )
    metadata = {
        "general.type": gguf_values.string("imatrix"),
        DATASETS: gguf_values.strings(imatrix.datasets),
        CHUNK_COUNT: gguf_values.u32(imatrix.chunk_count),
        CHUNK_SIZE: gguf_values.u32(imatrix.chunk_size),
    }
    write_gguf(path, metadata, _tensors(imatrix))


def _tensors(imatrix: Imatrix) -> Iterator[TensorSource]:
    for name in sorted(imatrix.entries, key=str.encode):
        entry = imatrix.entries[name]
        for suffix, array in ((_SUMS, entry.sums), (_COUNTS, entry.counts.astype(np.float32)[:, None])):
            shape = array.shape if len(array) > 1 else array.shape[1:]  # ggml stores no dimension of one after the rest
            yield TensorSource(name + suffix, "F32", shape, partial(_same, array))


def _same(array: Array) -> Array:
    return array


def _read_entry(file: GgufCheckpoint, name: str) -> ImatrixEntry:
    sums, counts = (_floats(file, name, name + suffix) for suffix in (_SUMS, _COUNTS))
    if sums.size % counts.size:
        raise CheckpointError(
            f"{file.path}: entry {quoted(name)}: {sums.size} sums and {counts.size} counts; each count stands for as "
            "many sums"
        )
    return ImatrixEntry(sums.reshape(counts.size, -1), _whole(file, name, counts))


def _floats(file: GgufCheckpoint, entry: str, name: str) -> Float32:
    tensor: GgufTensor | None = file.tensors.get(name)
    if tensor is None or tensor.dtype != "F32":
        found = "missing" if tensor is None else f"of {tensor.dtype}"
        raise CheckpointError(f"{file.path}: entry {quoted(entry)}: tensor {quoted(name)} is {found}; it must be F32")
    floats: Float32 = tensor.numpy().astype(np.float32).reshape(-1)
    return floats


def _whole(file: GgufCheckpoint, name: str, counts: Float32) -> Int64:
    """Counts as integers, halves rounded away from zero, as C's lround."""
    if not (np.isfinite(counts) & (counts >= 0) & (counts < 2**62)).all():
        raise CheckpointError(
            f"{file.path}: entry {quoted(name)}: counts {counts[:4].tolist()}; a count is a number from 0 to 2^62"
        )
    return np.floor(counts.astype(np.float64) + 0.5).astype(np.int64)


def _count_of(file: GgufCheckpoint, key: str) -> int:
    value = file.metadata.get(key)
    if not isinstance(value, int) or file.metadata.typed(key).type_name != "u32":
        _missing(file.path, key, "a u32")
    return value


def _missing(path: Path, key: str, kind: str) -> NoReturn:
    raise CheckpointError(f"{path}: metadata {key!r} is missing or not {kind}; this GGUF holds no importance matrix")
