"""Text to token ids and back: what every tokenizer offers, and tokenizer.json through the `tokenizers` library."""

from abc import ABC, abstractmethod
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from string import ascii_uppercase
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tokenizers

from refquant.errors import CheckpointError, ModelError, RefquantError
from refquant.models.tokenizer_files import TokenizerSettings, read_settings

Ids = npt.NDArray[np.int64]
_T = TypeVar("_T")

_UNFINISHED = "\ufffd"  # what bytes that are no character decode to


@dataclass(frozen=True, eq=False)
class Tokenizer(ABC):
    """A tokenizer.

    Attributes:
        vocab_size: tokens that it knows, added ones too. A model's embedding may have more rows.
        bos_id: the token that a text begins with; None where there is none.
        eos_ids: the tokens that end a text.
        adds_bos: whether a text is meant to begin with BOS.
        special_tokens: the special tokens by role (`bos_token`, `eos_token`, …), as chat templates name them.
        chat_template: the Jinja template of a conversation; None where there is none.
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    adds_bos: bool
    special_tokens: Mapping[str, str]
    chat_template: str | None

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The token ids of a text; no BOS is put before it.

        Special tokens that the text spells out become their ids: this is how a rendered chat template is read.

        Args:
            text: any text; an empty one gives no ids.

        Returns:
            int64 (tokens,).

        Raises:
            RefquantError: the text is not Unicode (it holds half a surrogate pair), or has no encoding in this
                vocabulary.
        """

    @abstractmethod
    def encode_literal(self, text: str) -> Ids:
        """The token ids of a text as `encode` gives them, but what spells a special token is text like any other."""

    def encode_prompt(self, text: str) -> Ids:
        """The token ids of a text as the model expects its input: BOS first, where `adds_bos`."""
        ids = self.encode(text)
        return np.concatenate([[self.bos_id], ids]).astype(np.int64) if self.adds_bos else ids

    @abstractmethod
    def decode(self, ids: Iterable[int] | Ids) -> str:
        """The text of token ids.

        Special tokens, BOS and EOS have no text, and neither has an id beyond the vocabulary, which a padded embedding
        lets a model produce. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            RefquantError: an id below zero or beyond 32 bits.
        """

    @abstractmethod
    def stream(self, context: Iterable[int] = ()) -> "TextStream":
        """A decoder for ids that come one at a time after the ids of `context`."""


class TextStream(ABC):
    """Text from token ids that come one at a time, never half a character.

    The pieces and the last `flush` together are `decode` of all the ids, as far as these are valid UTF-8.
    """

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that is certain once this id has come."""

    @abstractmethod
    def flush(self) -> str:
        """What was held back: U+FFFD for the start of a character that never ended."""


class ByteDecoder:
    """UTF-8 that comes in pieces, with U+FFFD for what is none."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def push(self, raw: bytes) -> str:
        """The characters that are certain once these bytes have come."""
        text = self._decoder.decode(raw)
        waiting = self._decoder.getstate()[0]
        # Python waits for the third byte of a surrogate (ed a0 … ed bf), which is no character of UTF-8.
        surrogate = waiting[:1] == b"\xed" and waiting[1:2] >= b"\xa0"
        return text + self.flush() if surrogate else text

    def flush(self) -> str:
        """U+FFFD for the start of a character that never ended."""
        return self._decoder.decode(b"", final=True)


def checked_text(text: str) -> str:
    """The text, which must be Unicode.

    Raises:
        RefquantError: it holds half a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefquantError(f"text to tokenize: {error.reason} at character {error.start}; decode it first") from None
    return text


def checked_ids(ids: Iterable[int]) -> list[int]:
    """The ids as Python's integers.

    Raises:
        RefquantError: an id below zero or beyond 32 bits.
    """
    checked = [int(i) for i in ids]
    for i in checked:
        if not 0 <= i < 2**32:
            raise RefquantError(f"token id {i}; an id is 0 … 2^32 − 1")
    return checked


@dataclass(frozen=True, eq=False)
class LibraryTokenizer(Tokenizer):
    """The tokenizer of a Hugging Face folder.

    `adds_bos` is what tokenizer_config.json says (`add_bos_token`), or else what tokenizer.json's post-processor does.
    """

    _library: tokenizers.Tokenizer = field(repr=False)
    _silent: frozenset[int] = field(repr=False)  # ids that have no text of their own
    _bytes: Mapping[int, int] = field(repr=False)  # tokens that stand for one byte each, where the decoder has such

    def encode(self, text: str) -> Ids:
        return np.asarray(self._library.encode(checked_text(text), add_special_tokens=False).ids, np.int64)

    def encode_literal(self, text: str) -> Ids:
        return np.asarray(self._literal.encode(checked_text(text), add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Iterable[int] | Ids) -> str:
        kept = checked_ids(i for i in ids if int(i) not in self._silent)
        return str(self._library.decode(kept, skip_special_tokens=True))

    def stream(self, context: Iterable[int] = ()) -> TextStream:
        return _LibraryStream(self, continues=any(int(i) not in self._silent for i in context))

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The library's tokenizer with special tokens taken as text."""
        library = tokenizers.Tokenizer.from_str(self._library.to_str())
        library.encode_special_tokens = True
        return library


class _LibraryStream(TextStream):
    """Ids are decoded behind a word that is cut off again.

    So a decoder that drops the first space does not drop the space between two pieces.
    """

    def __init__(self, tokenizer: LibraryTokenizer, continues: bool) -> None:
        self._tokenizer = tokenizer
        self._lead: list[int] = []  # what stands before the pending ids when they are decoded
        self._pending: list[int] = []  # ids since the text was last at the end of a character
        self._shown = 0  # characters of the pending text that are out
        self._bytes = ByteDecoder()  # for tokens that are one byte
        if continues:
            self._continue()

    def push(self, token: int) -> str:
        if token in self._tokenizer._silent:
            return ""
        byte = self._tokenizer._bytes.get(token)
        if byte is not None:
            return self._end_words() + self._bytes.push(bytes([byte]))
        piece = self._bytes.flush()
        self._pending.append(int(token))
        text = self._text()
        if not text.endswith(_UNFINISHED):
            piece += text[self._shown :]
            self._continue()
            return piece
        certain = max(self._shown, len(text) - 1)  # the bytes of an unfinished character are one U+FFFD
        piece += text[self._shown : certain]
        self._shown = certain
        return piece

    def flush(self) -> str:
        return self._end_words() + self._bytes.flush()

    def _end_words(self) -> str:
        piece = self._text()[self._shown :]
        self._continue()
        return piece

    def _continue(self) -> None:
        self._pending, self._shown = [], 0
        self._lead = self._lead or [int(i) for i in self._tokenizer.encode("a")]

    def _text(self) -> str:
        lead = self._tokenizer.decode(self._lead)
        return self._tokenizer.decode(self._lead + self._pending)[len(lead) :]


def load_tokenizer(folder: Path) -> LibraryTokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises:
        ModelError: the folder has no tokenizer.json.
        CheckpointError: tokenizer.json or a file beside it is broken; the message names file and value.
        OSError: a file cannot be read.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelError(
            f"{folder}: no tokenizer.json; save one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder), or work with token ids"
        )
    library = read_library(path)
    settings = read_settings(folder)
    bos = _bos_id(settings, library, path)
    eos = settings.eos_ids | _special_ids(settings, "eos_token", library, path)
    declared = frozenset(i for i, token in library.get_added_tokens_decoder().items() if token.special)
    return LibraryTokenizer(
        vocab_size=library.get_vocab_size(with_added_tokens=True),
        bos_id=bos,
        eos_ids=eos,
        adds_bos=_adds_bos(settings, library, bos, path),
        special_tokens=settings.special_tokens,
        chat_template=settings.chat_template,
        _library=library,
        _silent=declared | eos | (frozenset() if bos is None else {bos}),
        _bytes=_guarded(path, lambda: _byte_tokens(library)),
    )


def read_library(path: Path) -> tokenizers.Tokenizer:
    """A tokenizer.json as the `tokenizers` library runs it, without truncation or padding.

    Raises:
        CheckpointError: the library does not take it.
        OSError: it cannot be read.
    """
    library = _guarded(path, lambda: tokenizers.Tokenizer.from_buffer(path.read_bytes()))
    library.no_truncation()  # a file saved after training may cut or pad every text
    library.no_padding()
    return library


def _guarded(path: Path, read: Callable[[], _T]) -> _T:
    """Run what the library does with a file's content; whatever it raises is the file's fault."""
    try:
        return read()
    except OSError:
        raise
    except BaseException as error:  # it raises bare Exception, and on a bug in Rust a PanicException
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{path}: not a tokenizer that the tokenizers library reads: {error}") from None
        raise


def _byte_tokens(library: tokenizers.Tokenizer) -> dict[int, int]:
    """The tokens `<0x00>` … `<0xFF>`, if the decoder takes them for bytes ("byte fallback")."""
    ids = [library.token_to_id(f"<0x{byte:02X}>") for byte in range(256)]
    named = {i: byte for byte, i in enumerate(ids) if i is not None}
    return named if len(named) == 256 and library.decode(list(named)[0x41:0x5B]) == ascii_uppercase else {}


def _special_ids(settings: TokenizerSettings, role: str, library: tokenizers.Tokenizer, path: Path) -> frozenset[int]:
    name = settings.special_tokens.get(role)
    if name is None:
        return frozenset()
    token = library.token_to_id(name)
    if token is None:
        raise CheckpointError(f"{path}: the {role} {name!r} of tokenizer_config.json is not in the vocabulary")
    return frozenset({token})


def _bos_id(settings: TokenizerSettings, library: tokenizers.Tokenizer, path: Path) -> int | None:
    named = _special_ids(settings, "bos_token", library, path)
    return next(iter(named), settings.bos_id)


def _adds_bos(settings: TokenizerSettings, library: tokenizers.Tokenizer, bos: int | None, path: Path) -> bool:
    if settings.add_bos is not None:
        if settings.add_bos and bos is None:
            raise CheckpointError(f"{path.parent}: add_bos_token is true, and no file names a BOS token")
        return settings.add_bos
    processed: list[int] = _guarded(path, lambda: library.encode("", add_special_tokens=True).ids)
    return bos is not None and processed[:1] == [bos]
