"""Making a GGUF file: plan, check, then write tensor by tensor (spec/file_types.md, section 7)."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from refquant.arrays import Array, Float32, Shape
from refquant.checkpoints.ggml_types import BY_NAME
from refquant.checkpoints.gguf_split import part_path
from refquant.checkpoints.gguf_split_writer import write_split
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.checkpoints.imatrix import Imatrix, read_imatrix
from refquant.checkpoints.text import quoted
from refquant.conversion.metadata import ImatrixSource, output_metadata
from refquant.conversion.options import Options
from refquant.conversion.plan import Plan, PlannedTensor, plan
from refquant.conversion.roles import EMBEDDING, role_of
from refquant.conversion.rows import converted, copied
from refquant.conversion.source import Source, files_of, open_source
from refquant.errors import RefquantError
from refquant.formats.ggml import GgmlFormat
from refquant.formats.registry import get_format

Progress = Callable[[str, int, int], object]  # a tensor's name, the weights done and those of the whole model


def convert(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    file_type: str,
    *,
    imatrix: str | os.PathLike[str] | Imatrix | ImatrixSource | None = None,
    options: Options | None = None,
    keep_split: bool = False,
    threads: int = 1,
    on_progress: Progress | None = None,
) -> Plan:
    """Write a model as a GGUF of a file type, as llama-quantize would: the tensor data is the same to the byte.

    Memory: the bytes of the largest tensor of the output, and a slab of rows for each thread. The file appears when it
    is complete.

    Args:
        source: a GGUF file, any part of a split one, a Hugging Face folder, or one of them opened (`open_source`).
        target: the file to write; with `keep_split` the name before `-00001-of-0000N.gguf`.
        file_type: "Q4_K_M", "IQ2_XS", "COPY", …: spec/file_types.md lists them.
        imatrix: an importance matrix or its file.
        options: llama-quantize's options; none given: its defaults.
        keep_split: write as many parts as the input has, with the same tensors.
        threads: slabs of rows encoded at a time; the result is the same with any number.
        on_progress: called with a tensor's name, the weights done and those of the whole model.

    Returns:
        The plan that was followed.

    Raises:
        UnknownNameError: no such file type or tensor type.
        RefquantError: what the plan cannot do; a tensor that is quantized already, without `allow_requantize`; an
            importance matrix that is missing where one is needed, or of another size than its tensor.
        NonFiniteError, ScaleOverflowError: a tensor with a NaN, an infinity, or weights whose scale overflows.
        CheckpointError: a malformed input.
        OSError: the system does not let us read or write.

    Source: spec/file_types.md; llama.cpp's tools/quantize.
    """
    if threads < 1:
        raise RefquantError(f"threads {threads} given; at least 1")
    model = open_source(source) if isinstance(source, str | os.PathLike) else source
    weights = _imatrix_source(imatrix)
    options = options or Options()
    decided = plan(model, file_type, options, has_imatrix=weights is not None, keep_order=keep_split)
    check_plan(model, decided, options, weights.imatrix if weights else None)
    metadata = output_metadata(model, decided, options.overrides, weights)
    work = _Work(model, weights.imatrix if weights else None, threads, decided.size, on_progress)
    if not keep_split:
        _refuse_same_file(model, Path(target))
        write_gguf(target, metadata, [work.tensor(planned) for planned in decided.tensors])
        return decided
    prefix = Path(str(target).removesuffix(".gguf"))
    files = files_of(model)
    for number in range(len(files)):
        _refuse_same_file(model, part_path(prefix, number + 1, len(files)))
    parts: list[list[TensorSource]] = [[] for _ in files]
    for planned in decided.tensors:
        parts[files.index(model.tensors[planned.source].path)].append(work.tensor(planned))
    if len(parts) == 1:
        write_gguf(part_path(prefix, 1, 1), metadata, parts[0])
    else:
        write_split(prefix, metadata, parts)
    return decided


def check_plan(model: Source, decided: Plan, options: Options, imatrix: Imatrix | None) -> None:
    """Refuse, before anything is written, what could not be written.

    Raises:
        RefquantError: see `convert`.
    """
    for planned in decided.tensors:
        if not planned.changes:
            continue
        what = f"tensor {quoted(planned.source)}"
        if BY_NAME[planned.old].block_size > 1 and not options.allow_requantize:
            raise RefquantError(
                f"{what} is quantized already ({planned.old}), and quantizing it again to {planned.new} adds to its "
                "error: start from the original weights, or allow requantizing (--allow-requantize)"
            )
        importance = importance_of(planned, imatrix)
        if importance is None and (planned.needs_imatrix or _demands_imatrix(planned.new)):
            raise RefquantError(
                f"{what} would become {planned.new}, which is of no use without an importance matrix, and "
                f"{'none is given' if imatrix is None else 'the one given has no data for it'}: "
                "compute one (refquant imatrix) and pass it with --imatrix"
            )


def _demands_imatrix(kind: str) -> bool:
    """Whether ggml has no encoder for the type without an importance matrix."""
    fmt = None if kind == "F32" else get_format(kind.lower())
    return isinstance(fmt, GgmlFormat) and fmt.needs_imatrix


def importance_of(planned: PlannedTensor, imatrix: Imatrix | None) -> Float32 | None:
    """float32 (matrices, n) for a tensor; None where the importance matrix has no entry for it.

    Raises:
        RefquantError: an entry of another size, but for the token embedding, whose entry is then left alone.
    """
    entry = imatrix.entries.get(planned.source) if imatrix else None
    if entry is None:
        return None
    n = planned.shape[-1]
    matrices = planned.shape[-3] if len(planned.shape) > 2 else 1
    if entry.sums.size != n * matrices:
        if role_of(planned.name) == EMBEDDING:
            return None
        raise RefquantError(
            f"tensor {quoted(planned.source)}: the importance matrix has {entry.sums.size} values for it, and "
            f"{matrices} × {n} are needed: it was computed on another model, or experts were stacked since"
        )
    outer = math.prod(planned.shape[:-3])  # every index of a fourth axis has the same importance
    return np.tile(entry.importance.reshape(matrices, n), (outer, 1))


@dataclass
class _Work:
    """Makes the data of the output when the writer asks for it, and tells how far it is."""

    model: Source
    imatrix: Imatrix | None
    threads: int
    total: int
    on_progress: Progress | None
    done: int = 0

    def tensor(self, planned: PlannedTensor) -> TensorSource:
        """What the writer needs to know of a tensor; nothing is read yet."""
        return TensorSource(
            planned.name, planned.new, _without_leading_ones(planned.shape), partial(self._data, planned)
        )

    def _data(self, planned: PlannedTensor) -> Array:
        tensor, tell = self.model.tensors[planned.source], partial(self._tell, planned.name)
        if not planned.changes:
            return copied(tensor, planned, self.threads, tell)
        return converted(tensor, planned, importance_of(planned, self.imatrix), self.threads, tell)

    def _tell(self, name: str, weights: int) -> None:
        self.done += weights
        if self.on_progress is not None:
            self.on_progress(name, self.done, self.total)


def _without_leading_ones(shape: Shape) -> Shape:
    """The shape as ggml writes it: no dimension of one after the last that is larger."""
    first = next((i for i, size in enumerate(shape) if size > 1), len(shape) - 1)
    return shape[first:]


def _imatrix_source(given: str | os.PathLike[str] | Imatrix | ImatrixSource | None) -> ImatrixSource | None:
    """An importance matrix with the name that the output mentions; one without entries is none."""
    if isinstance(given, str | os.PathLike):
        given = ImatrixSource(read_imatrix(given), os.fspath(given))
    elif isinstance(given, Imatrix):
        given = ImatrixSource(given)
    return given if given is not None and given.imatrix.entries else None


def _refuse_same_file(model: Source, target: Path) -> None:
    if target.exists() and any(target.samefile(path) for path in files_of(model)):
        raise RefquantError(f"{target}: the input itself; write to another file")
