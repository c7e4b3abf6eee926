"""SentencePiece's unigram model (`t5`): the most probable way to write a text in tokens.

The text is worked on as bytes: what a normalization leaves need not be UTF-8 (spec/tokenizer.md, section 3).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from refquant.errors import CheckpointError
from refquant.models.gguf_encoders import SPACE, Encoder
from refquant.models.gguf_vocab import TokenType, Vocab
from refquant.models.pair_merging import cut_before, word_starts

_SPACE: Final = SPACE.encode()
_NOT_UTF8: Final = "\ufffd".encode()
_PENALTY: Final = np.float32(10)  # how much less probable an unknown character is than the least probable token
_REMEMBERED: Final = 1 << 16
_LENGTHS: Final = bytes([1] * 192 + [2] * 32 + [3] * 16 + [4] * 16)  # bytes of a character by its first


@dataclass(frozen=True)
class Spaces:
    """What is done with spaces.

    Attributes:
        prefix: whether one is put before the first word.
        merged: whether a run counts as one, and those at the ends not at all.
    """

    prefix: bool
    merged: bool


class CharacterMap:
    """A precompiled normalization: what a prefix of the text is replaced by.

    The map is a double array: a trie in which the children of the node at i with base b are at i ^ b ^ byte. A node
    is a word of 32 bits: bits 10–30 the base (shifted by 8 more if bit 9 is set), bits 0–7 the byte that leads to it,
    bit 8 whether a replacement ends here; its place in the strings is then in bits 0–30 of the node at the base.
    """

    def __init__(self, raw: bytes) -> None:
        size = int.from_bytes(raw[:4], "little")
        if len(raw) < 4 or 4 + size >= len(raw):
            raise CheckpointError(
                f"the precompiled character map says that its trie has {size} bytes; it has {len(raw)} bytes in all"
            )
        self._nodes: list[int] = np.frombuffer(raw, "<u4", size // 4, 4).tolist()
        self._strings = raw[4 + size :]

    def longest(self, text: bytes, start: int) -> tuple[int, bytes] | None:
        """How many bytes from `start` on are replaced, and by what; None: none."""
        found = None
        node = self._base(0)
        for at in range(start, len(text)):
            node ^= text[at]
            if text[at] == 0 or self._node(node) & 0x8000_00FF != text[at]:
                break
            ends = self._node(node) >> 8 & 1
            node ^= self._base(node)
            if ends:
                found = (at + 1 - start, self._node(node) & 0x7FFF_FFFF)
        return None if found is None else (found[0], self._string(found[1]))

    def _node(self, i: int) -> int:
        if i >= len(self._nodes):
            raise CheckpointError(f"the precompiled character map leads to node {i}; it has {len(self._nodes)}")
        return self._nodes[i]

    def _base(self, i: int) -> int:
        node = self._node(i)
        return (node >> 10) << ((node & 1 << 9) >> 6) & 0xFFFF_FFFF

    def _string(self, start: int) -> bytes:
        end = self._strings.find(b"\0", start)
        if end < 0:
            raise CheckpointError(f"the precompiled character map has no string at {start}")
        return self._strings[start:end]


def unigram_encoder(vocab: Vocab, unknown: int, spaces: Spaces, mapped: CharacterMap | None) -> Encoder:
    """The most probable tokens of a text by the tokens' scores, which are logarithms.

    Args:
        vocab: the tokens; normal, user-defined and unused ones are used.
        unknown: the token for characters that no token holds.
        spaces: what is done with spaces.
        mapped: the normalization.
    """
    scores = _scores(vocab)
    least = min((vocab.scores[i] for i in vocab.of_types(TokenType.NORMAL)), default=float(np.finfo(np.float32).max))
    unknown_score = float(np.float32(least) - _PENALTY)
    kept = _prefixes(vocab)
    starts = word_starts((vocab.tokens[token] for token, _ in scores.values()), SPACE)
    longest = max(map(len, scores), default=0)

    @lru_cache(_REMEMBERED)
    def encode_word(word: bytes) -> list[int]:
        return _most_probable(word, scores, longest, unknown, unknown_score)

    def encode(text: str) -> list[int]:
        normal = _normalized(text.encode(), spaces, mapped, kept)
        try:
            parts = [part.encode() for part in cut_before(normal.decode(), starts)]
        except UnicodeDecodeError:
            parts = [normal]
        ids = [i for part in parts for i in encode_word(part)]
        return [i for i, before in zip(ids, [None, *ids], strict=False) if i != unknown or before != unknown]

    return encode


def _scores(vocab: Vocab) -> dict[bytes, tuple[int, float]]:
    """Token and score by text; user-defined tokens have the best score there is."""
    usable = vocab.of_types(TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    free = TokenType.USER_DEFINED
    return {
        vocab.tokens[i].encode("utf-8", "surrogateescape"): (i, 0.0 if vocab.types[i] is free else vocab.scores[i])
        for i in usable
    }


def _prefixes(vocab: Vocab) -> frozenset[bytes]:
    """What user-defined tokens begin with: such text is not normalized."""
    tokens = [vocab.tokens[i].encode("utf-8", "surrogateescape") for i in vocab.of_types(TokenType.USER_DEFINED)]
    return frozenset(token[:end] for token in tokens for end in range(1, len(token) + 1))


def _most_probable(
    word: bytes, scores: dict[bytes, tuple[int, float]], longest: int, unknown: int, unknown_score: float
) -> list[int]:
    """The best path from the start to the end; among equals the one found first, by starts and then by lengths."""
    best: list[tuple[float, int, int]] = [(-np.inf, 0, unknown)] * (len(word) + 1)  # score, start, token
    best[0] = (0.0, 0, unknown)
    start = 0
    while start < len(word):
        length = min(_LENGTHS[word[start]], len(word) - start)
        so_far = best[start][0]
        covered = False
        for end in range(start + 1, min(start + longest, len(word)) + 1):
            token = scores.get(word[start:end])
            if token is not None:
                covered |= end == start + length
                if so_far + token[1] > best[end][0]:
                    best[end] = (so_far + token[1], start, token[0])
        if not covered and so_far + unknown_score > best[start + length][0]:
            best[start + length] = (so_far + unknown_score, start, unknown)
        start += length
    path: list[int] = []
    end = len(word)
    while end > 0:
        _, end, token_id = best[end]
        path.append(token_id)
    return path[::-1]


def _normalized(text: bytes, spaces: Spaces, mapped: CharacterMap | None, kept: frozenset[bytes]) -> bytes:
    """The text as tokens spell it: mapped, with spaces written as U+2581 and one put first."""
    out = bytearray()
    prefixed = inside = False
    at = 0
    while at < len(text):
        length, replaced = _step(text, at, mapped, kept)
        at += length
        for byte in replaced:
            if byte != 0x20:
                if not inside and (spaces.merged or (spaces.prefix and not prefixed)):
                    out += _SPACE
                    prefixed = True
                out.append(byte)
            elif not spaces.merged:
                out += _SPACE
            inside = byte != 0x20
    return bytes(out)


def _step(text: bytes, at: int, mapped: CharacterMap | None, kept: frozenset[bytes]) -> tuple[int, bytes]:
    """How many bytes are taken next, and what they become."""
    length = 0
    while text[at : at + length + 1] in kept and at + length < len(text):
        length += 1
    if length:
        return length, text[at : at + length]
    if mapped is not None and (found := mapped.longest(text, at)):
        return found
    length = _LENGTHS[text[at]]
    character = text[at : at + length]
    continued = all(byte & 0xC0 == 0x80 for byte in character[1:])
    whole = len(character) == length and continued and not 0x80 <= text[at] < 0xC0
    return (length, character) if whole else (1, _NOT_UTF8)
