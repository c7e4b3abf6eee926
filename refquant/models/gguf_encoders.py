"""Plain text to token ids, by tokenizer model: byte-pair (`gpt2`, `gemma4`) and SentencePiece's byte-pair (`llama`).

llama.cpp's ids are the definition (spec/tokenizer.md, sections 2 and 3). An encoder sees text in which no special
token is left.
"""

from functools import lru_cache
from typing import Final, Protocol

from refquant.errors import RefquantError
from refquant.models.gguf_vocab import Vocab
from refquant.models.pair_merging import cut_before, merge_pairs, word_starts
from refquant.models.pretokenizers import PreTokenizer, words

SPACE: Final = "\u2581"
_REMEMBERED: Final = 1 << 16  # words whose ids are kept; a text repeats most of its words


class Encoder(Protocol):
    """A way from text to ids."""

    def __call__(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""


def _byte_letters() -> list[str]:
    """GPT-2's letters for bytes: a printable character each, its own where a byte has one in Latin-1."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_LETTERS: Final = _byte_letters()
_TO_LETTERS: Final = dict(enumerate(BYTE_LETTERS))
# The texts of one byte each, as a vocabulary would hold them; beyond ASCII no UTF-8.
_ONE_BYTE: Final = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in range(256)]
_BYTE_TOKENS: Final = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_pair_encoder(vocab: Vocab, merges: list[str], pre: PreTokenizer) -> Encoder:
    """Byte-pair encoding: words, the characters of each, and the merges in the order of their ranks.

    Args:
        vocab: the tokens.
        merges: pairs, two texts with a space between, the first to be merged first. Of a pair that comes twice the
            first place counts.
        pre: how the text is cut into words.
    """
    ranks = {merge: len(merges) - i for i, merge in enumerate(reversed(merges), 1)}
    ids = vocab.ids
    fallback = _ONE_BYTE if pre.byte_level else _BYTE_TOKENS

    def priority(left: str, right: str) -> float | None:
        return ranks.get(f"{left} {right}")

    def encode_symbol(symbol: str) -> list[int]:
        if symbol in ids:
            return [ids[symbol]]
        spelt = [fallback[byte] for byte in symbol.encode()]
        return [ids[token] for token in spelt if token in ids]  # what has no token is left out

    @lru_cache(_REMEMBERED)
    def encode_word(word: str) -> list[int]:
        if pre.byte_level:
            word = word.encode().decode("latin-1").translate(_TO_LETTERS)
        whole = pre.ignores_merges or (pre.whole_newlines and word.strip("\n") == "")
        if whole and word in ids:
            return [ids[word]]
        return [i for symbol in merge_pairs(list(word), priority) for i in encode_symbol(symbol)]

    if not pre.escapes_spaces:
        return lambda text: [i for word in words(text, pre.patterns) for i in encode_word(word)]
    starts = word_starts((merge.replace(" ", "") for merge in merges), SPACE)

    def encode_lines(text: str) -> list[int]:
        lines = words(text.replace(" ", SPACE), pre.patterns)
        return [i for line in lines for part in cut_before(line, starts) for i in encode_word(part)]

    return encode_lines


def sentencepiece_encoder(vocab: Vocab) -> Encoder:
    """SentencePiece's byte-pair encoding: neighbours merge where the two are a token, that of the best score first.

    A character that is no token becomes the tokens of its bytes.
    """
    ids, scores = vocab.ids, vocab.scores
    starts = word_starts(vocab.tokens, SPACE)

    def priority(left: str, right: str) -> float | None:
        token = ids.get(left + right)
        return None if token is None else -scores[token]

    def encode_symbol(symbol: str) -> list[int]:
        return [ids[symbol]] if symbol in ids else [byte_token(byte) for byte in symbol.encode()]

    def byte_token(byte: int) -> int:
        token = ids.get(_BYTE_TOKENS[byte], ids.get(_ONE_BYTE[byte]))
        if token is None:
            raise RefquantError(
                f"text to tokenize: the vocabulary has no token for byte 0x{byte:02X}, neither {_BYTE_TOKENS[byte]} "
                "nor the byte itself; this tokenizer cannot encode the text"
            )
        return token

    @lru_cache(_REMEMBERED)
    def encode_word(word: str) -> list[int]:
        return [i for symbol in merge_pairs(list(word), priority) for i in encode_symbol(symbol)]

    def encode(text: str) -> list[int]:
        return [i for word in cut_before(text.replace(" ", SPACE), starts) for i in encode_word(word)]

    return encode
