"""The pieces of a SentencePiece model (`tokenizer.model`), read from its protocol buffer without one.

`ModelProto` of sentencepiece_model.proto has its pieces in field 1, each a message of the text (1), the score (2) and
the type (3). Everything else is skipped.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from refquant.errors import CheckpointError
from refquant.models.gguf_vocab import TokenType

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5  # wire types
_PIECES: Final = 1
_TEXT, _SCORE, _TYPE = 1, 2, 3
# A type that llama.cpp's converter does not ask about is normal, user-defined ones too.
_TYPES: Final = {2: TokenType.UNKNOWN, 3: TokenType.CONTROL, 5: TokenType.UNUSED, 6: TokenType.BYTE}

_Field: TypeAlias = int | bytes


@dataclass(frozen=True)
class Piece:
    """A token of a SentencePiece model.

    Attributes:
        text: what it stands for, with U+2581 for a space.
        score: its score, a float32.
        type: what kind it is.
    """

    text: str
    score: float
    type: TokenType


def read_pieces(path: Path) -> list[Piece]:
    """The tokens in the order of their ids.

    Raises:
        CheckpointError: the file is no protocol buffer, or one without pieces; the message names the byte.
        OSError: it cannot be read.
    """
    raw = path.read_bytes()
    pieces = [_piece(path, field) for number, field in _fields(path, raw) if number == _PIECES]
    if not pieces:
        raise CheckpointError(f"{path}: no pieces; it must be a SentencePiece model")
    return pieces


def _piece(path: Path, field: _Field) -> Piece:
    if not isinstance(field, bytes):
        raise CheckpointError(f"{path}: a piece that is a number; it must be a SentencePiece model")
    found = dict(_fields(path, field))
    text, score, kind = found.get(_TEXT, b""), found.get(_SCORE, b"\0\0\0\0"), found.get(_TYPE, 1)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4 or not isinstance(kind, int):
        raise CheckpointError(f"{path}: a piece whose text, score or type is of the wrong kind: {field[:40]!r}")
    try:
        return Piece(text.decode(), struct.unpack("<f", score)[0], _TYPES.get(kind, TokenType.NORMAL))
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: a piece that is not UTF-8: {text[:40]!r}: {error.reason}") from None


def _fields(path: Path, message: bytes) -> Iterator[tuple[int, _Field]]:
    """The number and value of each field; numbers of fixed size are bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(path, message, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(path, message, at)
            yield tag >> 3, value
            continue
        if wire not in (_EIGHT, _BYTES, _FOUR):
            raise CheckpointError(f"{path}: wire type {wire} at byte {at - 1} of a message of {len(message)} bytes")
        size = {_EIGHT: 8, _FOUR: 4}.get(wire)
        if size is None:
            size, at = _varint(path, message, at)
        if size > len(message) - at:
            raise CheckpointError(
                f"{path}: a field of {size} bytes at byte {at} of a message of {len(message)}: the file is cut short "
                "or is no SentencePiece model"
            )
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(path: Path, message: bytes, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(message):
            break
        value |= (message[at + i] & 0x7F) << 7 * i
        if message[at + i] < 0x80:
            return value, at + i + 1
    raise CheckpointError(f"{path}: an integer at byte {at} of a message of {len(message)} that does not end")
