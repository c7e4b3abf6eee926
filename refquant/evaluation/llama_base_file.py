"""llama-perplexity's file of a base model's log-probabilities, sixteen bits each (spec/evaluation.md).

It holds the token ids too: whoever reads it measures the same text.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refquant.arrays import Array, Float32, Int64
from refquant.checkpoints.atomic import replacing
from refquant.errors import CheckpointError
from refquant.formats.rounding import nearest_int

MAGIC = b"_logits_"
_HEADER = np.dtype([("magic", "S8"), ("window", "<u4"), ("vocab_size", "<i4"), ("chunks", "<i4")])
_LEAST = np.float32(-16)  # log-probabilities are stored down to this far below the largest logit
_CODES = np.float32(65535)


def scored_a_window(window: int) -> int:
    """Rows that the file holds for each window: its second half but for the first token."""
    return window - 1 - window // 2


def row_dtype(vocab_size: int) -> np.dtype[np.void]:
    """A row: the step between codes, the log-probability of code 0, a code a token; an even number of codes."""
    return np.dtype([("scale", "<f4"), ("least", "<f4"), ("codes", "<u2", vocab_size + vocab_size % 2)])


@dataclass(frozen=True, eq=False)
class LlamaBase:
    """An opened base file; its rows are mapped and read when they are asked for.

    Attributes:
        path: the file.
        window: tokens in a window.
        vocab_size: log-probabilities in a row.
        ids: int64 (chunks · window,), as the base's tokenizer gave them.
    """

    path: Path
    window: int
    vocab_size: int
    ids: Int64
    _rows: Array = field(repr=False)

    def logprobs(self, rows: slice) -> Float32:
        """Log-probabilities of some scored tokens, float32 (rows, vocabulary), rounded as the file has them."""
        stored = self._rows[rows]
        logprobs = stored["codes"][:, : self.vocab_size].astype(np.float32)
        logprobs *= stored["scale"][:, None]
        logprobs += stored["least"][:, None]
        return logprobs


def read_llama_base(path: str | os.PathLike[str]) -> LlamaBase:
    """Open a base file that llama-perplexity or refquant wrote.

    Raises:
        CheckpointError: not such a file, or one whose size contradicts its header; says which field and the limit.
        OSError: the system does not let us read it.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < _HEADER.itemsize or file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(f"{path}: not a base file of llama-perplexity: it does not begin with {MAGIC!r}")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header = np.frombuffer(mapped, _HEADER, count=1)[0]
    window, vocab_size, chunks = (int(header[name]) for name in ("window", "vocab_size", "chunks"))
    for name, value, least in (("window", window, 3), ("vocab_size", vocab_size, 1), ("chunks", chunks, 1)):
        if value < least:
            raise CheckpointError(f"{path}: {name} = {value} in the header; at least {least} makes sense")
    row_bytes = 8 + 2 * (vocab_size + vocab_size % 2)
    rows = chunks * scored_a_window(window)
    expected = _HEADER.itemsize + 4 * chunks * window + rows * row_bytes
    if size != expected:
        raise CheckpointError(
            f"{path}: {size} bytes; {chunks} windows of {window} tokens over a vocabulary of {vocab_size} take "
            f"{expected}: the file is truncated or damaged"
        )
    ids = np.frombuffer(mapped, "<i4", chunks * window, _HEADER.itemsize).astype(np.int64)
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        first = int(np.argmax(outside))
        raise CheckpointError(f"{path}: id {ids[first]} at index {first}; the vocabulary has ids 0 … {vocab_size - 1}")
    stored = np.frombuffer(mapped, row_dtype(vocab_size), rows, expected - rows * row_bytes)
    return LlamaBase(path, window, vocab_size, ids, stored)


class LlamaBaseWriter:
    """Writes the rows of a base file one after another."""

    def __init__(self, file: BinaryIO, window: int, vocab_size: int, ids: Int64) -> None:
        self._file, self._dtype, self._vocab_size = file, row_dtype(vocab_size), vocab_size
        header = np.array([(MAGIC, window, vocab_size, len(ids) // window)], _HEADER)
        file.write(header.tobytes() + ids.astype("<i4").tobytes())

    def write(self, logits: Float32) -> None:
        """Append the rows of some scored tokens, float32 (rows, vocabulary)."""
        rows = np.zeros(len(logits), self._dtype)
        largest = logits.max(-1)  # (rows,)
        least = np.maximum(logits.min(-1), largest + _LEAST)
        log_sum = np.log(np.exp(logits - largest[:, None]).sum(-1, dtype=np.float64)).astype(np.float32)
        rows["scale"] = scale = (largest - least) / _CODES
        rows["least"] = least - largest - log_sum
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        codes = nearest_int(inverse[:, None] * (logits - least[:, None]))
        rows["codes"][:, : self._vocab_size] = np.where(logits > least[:, None], codes, 0)
        self._file.write(rows.tobytes())


@contextmanager
def llama_base_writer(path: Path, window: int, vocab_size: int, ids: Int64) -> Iterator[LlamaBaseWriter]:
    """A writer of the base file of these ids, int64 (chunks · window,); the file appears whole or not at all."""
    with replacing(path) as file:
        yield LlamaBaseWriter(file, window, vocab_size, ids)
