"""What is measured on: documents of token ids, the rule for BOS, and the hash that names them (spec/evaluation.md)."""

import hashlib
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from refquant.arrays import Int64
from refquant.errors import ModelError, RefquantError, unknown_name

Text: TypeAlias = str | Sequence[str] | npt.ArrayLike | Sequence[npt.ArrayLike]
"""One text, or several documents, as strings or as token ids."""

BOS_RULES = ("auto", "always", "never")


class Tokenizer(Protocol):
    """What is asked of a model's tokenizer."""

    @property
    def bos_id(self) -> int | None:
        """The token that begins a document, if the vocabulary has one."""

    @property
    def adds_bos(self) -> bool:
        """Whether the model was trained with BOS at the start of a document."""

    def encode(self, text: str) -> Int64:
        """Ids of a text, int64 (tokens,), no special token added."""

    def encode_literal(self, text: str) -> Int64:
        """The same, but a special token that is spelt in the text is text like any other."""


@dataclass(frozen=True)
class Literal:
    """A tokenizer that takes all of a text for text, as llama-perplexity and llama-imatrix do.

    Attributes:
        tokenizer: the model's.
    """

    tokenizer: Tokenizer

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_id

    @property
    def adds_bos(self) -> bool:
        return self.tokenizer.adds_bos

    def encode(self, text: str) -> Int64:
        return self.tokenizer.encode_literal(text)

    def encode_literal(self, text: str) -> Int64:
        return self.tokenizer.encode_literal(text)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents of token ids as the model sees them.

    Attributes:
        documents: int64 arrays of at least two ids each, BOS included where the rule puts one.
        bos: the rule as it was applied, "always" or "never".
    """

    documents: tuple[Int64, ...]
    bos: str

    @property
    def tokens(self) -> int:
        """Ids in all documents together, BOS included."""
        return sum(len(ids) for ids in self.documents)

    @property
    def ids_sha256(self) -> str:
        """SHA-256 of the ids as little-endian int64, −1 standing between one document and the next."""
        end = np.array([-1])
        stream = [array for ids in self.documents for array in (end, ids)][1:]
        return hashlib.sha256(np.concatenate(stream).astype("<i8").tobytes()).hexdigest()


def make_corpus(
    text: Text, tokenizer: Tokenizer | None, vocab_size: int, bos: str = "auto", limit: int | None = None
) -> Corpus:
    """Tokenize what is text, check what is ids, and put BOS where the rule says.

    Args:
        text: one text or one array of ids; or a sequence of either, each a document of its own.
        tokenizer: the model's; None will do for ids without BOS.
        vocab_size: ids are below it.
        bos: "always", "never", or "auto": text gets BOS where the tokenizer adds one, ids are taken as they are.
            A document that already starts with BOS does not get a second.
        limit: keep the first so many tokens of all documents together, BOS not counted.

    Raises:
        UnknownNameError: no such rule.
        ModelError: text, or BOS, is asked of a model without a tokenizer, or BOS of one that has none.
        RefquantError: no document, one too short to score, or ids that are not integers of the vocabulary.
    """
    if bos not in BOS_RULES:
        raise unknown_name("BOS rule", bos, BOS_RULES)
    if limit is not None and limit < 1:
        raise RefquantError(f"limit = {limit} given; at least one token must be kept")
    given = _documents(text)
    rule = _applied(bos, any(isinstance(document, str) for document in given), tokenizer)
    documents = []
    for number, document in enumerate(given):
        where = f"document {number}" if len(given) > 1 else "text"
        ids = _encode(document, tokenizer, where) if isinstance(document, str) else np.asarray(document)
        ids = _check_ids(ids, vocab_size, where)[:limit]
        if limit is not None:
            limit -= len(ids)
        documents.append(_with_bos(ids, rule, tokenizer))
        if len(documents[-1]) < 2:
            raise RefquantError(
                f"{where}: {len(documents[-1])} token given; at least 2 are needed, BOS counted: one seen, one scored"
            )
        if limit == 0:
            break
    return Corpus(tuple(documents), rule)


def split_documents(text: str, separator: str) -> list[str]:
    """The documents of a file: what stands between separators, without white space at its ends, empty ones left out."""
    if not separator:
        raise RefquantError("an empty separator given; name the text that stands between two documents")
    documents = [part.strip() for part in text.split(separator)]
    return [document for document in documents if document]


def _documents(text: Text) -> list[str | npt.ArrayLike]:
    if isinstance(text, str):
        return [text]
    if isinstance(text, np.ndarray):
        return [text] if text.ndim == 1 else list(text)
    documents = list(text) if isinstance(text, Sequence) else [text]
    if not documents:
        raise RefquantError("an empty list given; give a text, or a list of documents")
    if all(isinstance(item, numbers.Integral) for item in documents):
        return [np.asarray(documents)]
    return documents


def _applied(bos: str, is_text: bool, tokenizer: Tokenizer | None) -> str:
    if bos == "always" and (tokenizer is None or tokenizer.bos_id is None):
        lacks = "tokenizer" if tokenizer is None else "BOS token"
        raise ModelError(f"bos = 'always' given, and the model has no {lacks}: use 'never', or put BOS among the ids")
    if bos != "auto":
        return bos
    adds = is_text and tokenizer is not None and tokenizer.adds_bos and tokenizer.bos_id is not None
    return "always" if adds else "never"


def _encode(text: str, tokenizer: Tokenizer | None, where: str) -> Int64:
    if tokenizer is None:
        raise ModelError(f"{where}: a text given, and the model has no tokenizer: give token ids")
    if not text:
        raise RefquantError(f"{where}: an empty text given; there is nothing to score")
    return tokenizer.encode(text)


def _check_ids(ids: npt.NDArray[np.generic], vocab_size: int, where: str) -> Int64:
    if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
        raise RefquantError(f"{where}: {ids.dtype} of shape {ids.shape} given; token ids are integers in one row")
    outside = (ids < 0) | (ids >= vocab_size)  # type: ignore[operator]  # integers, as was checked
    if outside.any():
        index = int(np.argmax(outside))
        raise RefquantError(
            f"{where}: id {ids[index]} at index {index} given; the model's vocabulary has ids 0 … {vocab_size - 1}: "
            "are these the ids of another tokenizer?"
        )
    return ids.astype(np.int64)


def _with_bos(ids: Int64, rule: str, tokenizer: Tokenizer | None) -> Int64:
    if rule == "never" or tokenizer is None or (len(ids) and ids[0] == tokenizer.bos_id):
        return ids
    return np.concatenate([np.array([tokenizer.bos_id], np.int64), ids])
