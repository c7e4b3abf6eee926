"""A SentencePiece tokenizer as GGUF metadata: from tokenizer.model, or from a tokenizer.json that was made of one."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from refquant.checkpoints.gguf_values import Value, ValueType, numbers, string, strings
from refquant.conversion.sentencepiece_model import read_pieces
from refquant.conversion.special_vocab import special_values
from refquant.conversion.tokenizer_files import TokenizerFolder
from refquant.errors import CheckpointError, ModelError
from refquant.models.gguf_encoders import SPACE
from refquant.models.gguf_vocab import PREFIX, TokenType

MODEL: Final = "tokenizer.model"

_ADDED_SCORE: Final = -1000.0
_PADDING_SCORE: Final = -10000.0


@dataclass(frozen=True)
class Token:
    """A token with its place.

    Attributes:
        id: its id.
        text: what it stands for.
        score: its score.
        type: what kind it is.
    """

    id: int
    text: str
    score: float
    type: TokenType


def from_model(files: TokenizerFolder, size: int, declared: Iterator[Token]) -> dict[str, Value]:
    """The metadata of a folder with tokenizer.model.

    Ids that nothing names are `[PAD…]`; tokens beyond the vocabulary are left out.

    Args:
        files: the folder.
        size: tokens in the vocabulary.
        declared: tokens that other files add or change, in order.

    Raises:
        ModelError: no tokenizer.model.
        CheckpointError: it is broken.
    """
    path = files.path / MODEL
    if not path.is_file():
        raise ModelError(f"{path}: not there; this architecture's tokenizer is read from it")
    table = [Token(i, f"[PAD{i}]", _PADDING_SCORE, TokenType.UNUSED) for i in range(size)]
    pieces = [Token(i, piece.text, piece.score, piece.type) for i, piece in enumerate(read_pieces(path))]
    for token in (*pieces, *declared):
        if token.id < size:
            table[token.id] = token
    return _values(table) | special_values(files, size)


def declared_tokens(files: TokenizerFolder) -> Iterator[Token]:
    """The tokens of added_tokens.json and of tokenizer_config.json."""
    yield from _added_tokens(files)
    for i, entry in files.decoder_tokens().items():
        text = entry["content"]
        if entry.get("special") or looks_special(text):
            yield Token(i, text, _ADDED_SCORE, TokenType.CONTROL)
        else:
            yield Token(i, text.replace(SPACE, " "), _ADDED_SCORE, TokenType.USER_DEFINED)


def declared_tokens_phi3(files: TokenizerFolder) -> Iterator[Token]:
    """The tokens of added_tokens.json, tokenizer_config.json and tokenizer.json, special only where one says so."""
    yield from _added_tokens(files)
    for i, entry in [*files.decoder_tokens().items(), *((entry["id"], entry) for entry in files.added_tokens())]:
        kind = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
        yield Token(i, entry["content"], _ADDED_SCORE, kind)


def _added_tokens(files: TokenizerFolder) -> Iterator[Token]:
    for text, i in (files.document("added_tokens.json") or {}).items():
        if not isinstance(i, int) or i < 0:
            raise CheckpointError(
                f"{files.path / 'added_tokens.json'}: token {text!r} has id {i!r}; an id is 0 or more"
            )
        yield Token(i, text, _ADDED_SCORE, TokenType.USER_DEFINED)


def looks_special(token: str) -> bool:
    """Whether a token's spelling says that it is special: some models declare such tokens as plain ones."""
    enclosed = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    return token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        token.startswith(head) and token.endswith(tail) for head, tail in enclosed
    )


def is_sentencepiece_json(files: TokenizerFolder) -> bool:
    """Whether tokenizer.json is a byte-pair tokenizer with tokens for bytes, as transformers makes of SentencePiece."""
    document = files.tokenizer or {}
    model, decoder = document.get("model") or {}, document.get("decoder") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback")) and decoder.get("type") == "Sequence"


def from_json(files: TokenizerFolder) -> dict[str, Value]:
    """The metadata of such a tokenizer.json. It has no scores, so all are the same and only lengths decide."""
    base = files.library.get_vocab_size(with_added_tokens=False)
    by_id = {i: token for token, i in files.library.get_vocab(with_added_tokens=True).items()}
    special = set(files.special_names())
    table = []
    for i in range(len(by_id)):
        if i not in by_id:
            raise CheckpointError(f"{files.path / 'tokenizer.json'}: no token has id {i}; ids must have no gaps")
        table.append(Token(i, by_id[i], _ADDED_SCORE, _json_type(by_id[i], i >= base, by_id[i] in special)))
    return _values(table) | special_values(files, len(table))


def _json_type(token: str, is_added: bool, is_special: bool) -> TokenType:
    if not is_added and re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
        return TokenType.BYTE
    if is_special:
        return TokenType.CONTROL
    return TokenType.USER_DEFINED if is_added else TokenType.NORMAL


def _values(table: list[Token]) -> dict[str, Value]:
    return {
        PREFIX + "model": string("llama"),
        PREFIX + "pre": string("default"),
        PREFIX + "tokens": strings([token.text for token in table]),
        PREFIX + "scores": numbers(ValueType.F32, np.array([token.score for token in table], np.float32)),
        PREFIX + "token_type": numbers(ValueType.I32, np.array([int(token.type) for token in table], np.int32)),
    }
