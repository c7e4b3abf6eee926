"""The bytes that each token of a GGUF vocabulary stands for (spec/tokenizer.md, section 5)."""

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from refquant.models.gguf_encoders import BYTE_LETTERS, SPACE
from refquant.models.gguf_vocab import TokenType, Vocab

Pieces = Callable[[int], bytes]
"""The bytes of a token; none for a token that has no text of its own."""

_BYTES: Final = {letter: bytes([byte]) for byte, letter in enumerate(BYTE_LETTERS)}
_REMEMBERED: Final = 1 << 16


def spelt_bytes(token: str) -> bytes:
    """The bytes of a token in GPT-2's letters; a character that is none of them says so, as llama.cpp writes it."""
    return b"".join(_BYTES.get(letter) or _unknown(letter, token) for letter in token)


def plain_bytes(token: str) -> bytes:
    """The bytes of a token in plain characters, U+2581 being a space."""
    return _stored(token.replace(SPACE, " "))


def pieces(vocab: Vocab, normal: Callable[[str], bytes]) -> Pieces:
    """The bytes of tokens.

    Args:
        vocab: the tokens.
        normal: the bytes of a normal token.
    """

    @lru_cache(_REMEMBERED)
    def piece(token: int) -> bytes:
        if not 0 <= token < len(vocab.tokens):
            return b""
        text = vocab.tokens[token]
        match vocab.types[token]:
            case TokenType.NORMAL:
                return normal(text)
            case TokenType.USER_DEFINED:
                return _stored(text)
            case TokenType.BYTE:
                return bytes([_hexadecimal(text[3:5])])
            case _:
                return b""

    return piece


def _hexadecimal(digits: str) -> int:
    """What C's strtol reads: the digits up to the first that is none."""
    valid = digits if all(c in "0123456789abcdefABCDEF" for c in digits) else ""
    return int(valid or "0", 16)


def _unknown(letter: str, token: str) -> bytes:
    shown = "\ufffd" if "\ud800" <= letter <= "\udfff" else letter
    return f"[UNK_BYTE_0x{shown.encode().hex()}".encode() + _stored(token) + b"]"


def _stored(token: str) -> bytes:
    return token.encode("utf-8", "surrogateescape")
