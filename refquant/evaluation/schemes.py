"""What a row of a benchmark stands for: a format for every matrix, or a file type of llama.cpp; and its model."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from refquant.checkpoints.imatrix import Imatrix
from refquant.conversion import FileType, Options, convert, file_type, open_source, plan
from refquant.errors import RefquantError
from refquant.evaluation.quantized_model import Cost, cost_beside, matrix_names, quantize_model
from refquant.formats.base import Format
from refquant.formats.registry import get_format
from refquant.models import load_model
from refquant.models.model import Model

Scheme: TypeAlias = Format | FileType

# A model in GGUF is often quantized already; that errors then add up is what the table shows.
_OPTIONS = Options(allow_requantize=True)


@dataclass(frozen=True)
class Fallback:
    """Tensors whose rows do not hold whole blocks of the type that a file type's rule chose.

    Attributes:
        asked: the type of the rule.
        used: the type in its place.
        tensors: how many there are.
    """

    asked: str
    used: str
    tensors: int


class Quantized(NamedTuple):
    """A quantized model, what it costs, and the fallbacks that a file type took."""

    model: Model
    cost: Cost
    fallbacks: tuple[Fallback, ...]


def parse_scheme(scheme: str | Scheme) -> Scheme:
    """A format from a scheme string, or a file type from a name with upper-case letters (`"Q4_K_M"`).

    Raises:
        UnknownNameError: there is neither; the message offers near names.
    """
    if not isinstance(scheme, str):
        return scheme
    return get_format(scheme) if scheme == scheme.lower() else file_type(scheme)


def name_of(scheme: Scheme) -> str:
    """What the table calls a scheme."""
    return scheme.name if isinstance(scheme, FileType) else str(scheme)


def check_scheme(model: Model, scheme: Scheme, embeddings: str, imatrix: Imatrix | None = None) -> None:
    """Raise, before any work is done, where this model's shapes do not suit a format, or the rule of a file type.

    Raises:
        RefquantError: names the scheme and the first matrix.
    """
    if isinstance(scheme, FileType):
        plan(open_source(model.path), scheme.name, _OPTIONS, has_imatrix=imatrix is not None)
        return
    for name in matrix_names(model, embeddings):
        try:
            scheme.layout(model.weights[name].shape)
        except RefquantError as error:
            raise type(error)(f"{name}: {error}") from None


@contextmanager
def quantized(model: Model, scheme: Scheme, embeddings: str, imatrix: Imatrix | None = None) -> Iterator[Quantized]:
    """The model in a scheme; that of a file type lives in a temporary file, which is gone when the context ends.

    Args:
        model: for a file type, one loaded from a GGUF file or a Hugging Face folder.
        scheme: a format, or a file type: what `refquant quantize` writes is then loaded and run.
        embeddings: "keep" or "quantize"; a file type's rule decides for token embedding and head itself.
        imatrix: for the tensors of a file type that take an importance matrix, or demand one.

    Raises:
        RefquantError: a matrix that the format cannot take, or what `convert` refuses.
        OSError: no room for the file in the temporary folder.
    """
    if isinstance(scheme, Format):
        yield Quantized(*quantize_model(model, scheme, embeddings), ())
        return
    with tempfile.TemporaryDirectory(prefix="refquant-") as folder:
        path = Path(folder, f"{scheme.name}.gguf")
        followed = convert(open_source(model.path), path, scheme.name, imatrix=imatrix, options=_OPTIONS)
        other = load_model(path)
        counts = Counter((str(tensor.instead_of), tensor.new) for tensor in followed.fallbacks)
        fallbacks = tuple(Fallback(*types, count) for types, count in sorted(counts.items()))
        yield Quantized(other, cost_beside(model, other), fallbacks)
