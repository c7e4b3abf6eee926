"""A tokenizer from the metadata of a GGUF file; its ids are llama.cpp's (spec/tokenizer.md)."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from refquant.errors import CheckpointError, ModelError
from refquant.models.gguf_encoders import Encoder, byte_pair_encoder, sentencepiece_encoder
from refquant.models.gguf_fields import Fields
from refquant.models.gguf_pieces import Pieces, pieces, plain_bytes, spelt_bytes
from refquant.models.gguf_unigram import CharacterMap, Spaces, unigram_encoder
from refquant.models.gguf_vocab import PREFIX, TokenType, Vocab, find_special, read_special, read_vocab
from refquant.models.pretokenizers import pre_tokenizer
from refquant.models.special_tokens import SpecialTokens
from refquant.models.tokenizer import ByteDecoder, Ids, TextStream, Tokenizer, checked_ids, checked_text

MERGES: Final = PREFIX + "merges"
_TEMPLATE_ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "mask")
_OTHERS: Final = {
    "bert": "WordPiece, of embedding models",
    "rwkv": "the RWKV world tokenizer",
    "plamo2": "PLaMo-2's tokenizer",
    "hybriddna": "a byte-pair tokenizer with k-mers",
    "whitespace": "a byte-pair tokenizer that drops white space",
    "test": "llama.cpp's dummy",
    "no_vocab": "a file without a tokenizer",
    "none": "a file without a tokenizer",
}


@dataclass(frozen=True)
class _Defaults:
    """What a tokenizer model assumes where the metadata is silent.

    Attributes:
        ids: special tokens by role.
        adds_bos: whether a text begins with BOS.
        adds_eos: whether a text ends with EOS.
        space_prefix: whether text begins with a space.
    """

    ids: Mapping[str, int]
    adds_bos: bool = False
    adds_eos: bool = False
    space_prefix: bool = False


_LLAMA: Final = _Defaults({"bos": 1, "eos": 2, "unk": 0}, adds_bos=True, space_prefix=True)
_T5: Final = _Defaults({"eos": 1, "unk": 2, "pad": 0}, adds_eos=True)


@dataclass(frozen=True, eq=False)
class GgufTokenizer(Tokenizer):
    """The tokenizer of a GGUF file.

    Attributes:
        eos_id: the token that ends a document; None where there is none.
        adds_eos: whether a document is meant to end with EOS. `encode_prompt` adds none: a prompt is to go on.
    """

    eos_id: int | None
    adds_eos: bool
    _encoder: Encoder = field(repr=False)
    _piece: Pieces = field(repr=False)
    _special: SpecialTokens = field(repr=False)  # every token that a text can spell out
    _user_defined: SpecialTokens = field(repr=False)  # those of them that literal text holds too
    _prefix: str = field(repr=False)  # what is put before text at the start and behind special tokens
    _drops_space: bool = field(repr=False)  # whether the first space of decoded text is dropped

    def encode(self, text: str) -> Ids:
        return self._encode(text, self._special)

    def encode_literal(self, text: str) -> Ids:
        return self._encode(text, self._user_defined)

    def decode(self, ids: Iterable[int] | Ids) -> str:
        raw = b"".join(map(self._piece, checked_ids(ids)))
        return (raw.removeprefix(b" ") if self._drops_space else raw).decode("utf-8", "replace")

    def stream(self, context: Iterable[int] = ()) -> TextStream:
        begun = any(self._piece(int(i)) for i in context)
        return _GgufStream(self._piece, drops_space=self._drops_space and not begun)

    def _encode(self, text: str, special: SpecialTokens) -> Ids:
        ids: list[int] = []
        prefix = self._prefix
        for fragment in special.partition(checked_text(text)):
            if isinstance(fragment, str):
                ids += self._encoder(prefix + fragment)
                prefix = ""
            else:
                ids.append(fragment)
                prefix = self._prefix
        return np.asarray(ids, np.int64)


class _GgufStream(TextStream):
    def __init__(self, piece: Pieces, drops_space: bool) -> None:
        self._piece = piece
        self._drops_space = drops_space  # until the first bytes have come
        self._bytes = ByteDecoder()

    def push(self, token: int) -> str:
        raw = self._piece(int(token))
        if raw and self._drops_space:
            self._drops_space = False
            raw = raw.removeprefix(b" ")
        return self._bytes.push(raw)

    def flush(self) -> str:
        return self._bytes.flush()


def from_metadata(metadata: Mapping[str, object], source: str = "GGUF") -> GgufTokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: plain values by key, those of `tokenizer.*` among them.
        source: what errors call the file.

    Raises:
        ModelError: a tokenizer model or pre-tokenizer that refquant does not have, or none at all.
        CheckpointError: metadata that is missing, of the wrong kind, or contradicts itself; the message names the key.
    """
    fields = Fields(metadata, source)
    match fields.string(PREFIX + "model"):
        case "gpt2":
            return _byte_pair(fields, fields.string(PREFIX + "pre") or "default", {"bos": 11, "eos": 11})
        case "gemma4":
            return _byte_pair(fields, "gemma4", {})
        case "llama":
            vocab = read_vocab(fields)
            tokenizer = _assemble(fields, vocab, sentencepiece_encoder(vocab), plain_bytes, _LLAMA)
            return replace(tokenizer, _prefix=" " if tokenizer._drops_space else "")
        case "t5":
            return _unigram(fields)
        case None:
            raise fields.error(PREFIX + "model", "missing; this file has no tokenizer: work with token ids")
        case other:
            raise ModelError(
                f"{source}: tokenizer.ggml.model is {other!r} ({_OTHERS.get(other, 'unknown')}); refquant has gpt2, "
                "llama, t5 and gemma4: work with token ids"
            )


def _byte_pair(fields: Fields, name: str, default_ids: Mapping[str, int]) -> GgufTokenizer:
    pre = pre_tokenizer(name)
    vocab = read_vocab(fields)
    unmerged = name == "kimi-k2" and MERGES not in fields.metadata
    encoder = byte_pair_encoder(vocab, [] if unmerged else fields.strings(MERGES), pre)
    ids = {role: i for role, i in default_ids.items() if pre.has_bos or role != "bos"}
    normal = plain_bytes if pre.escapes_spaces else spelt_bytes
    tokenizer = _assemble(fields, vocab, encoder, normal, _Defaults(ids, adds_bos=pre.adds_bos))
    return replace(tokenizer, adds_bos=True) if pre.always_bos else tokenizer


def _unigram(fields: Fields) -> GgufTokenizer:
    vocab = read_vocab(fields)
    unknown = read_special(fields, vocab, _T5.ids).ids.get("unk")
    if unknown is None:
        raise fields.error(PREFIX + "unknown_token_id", "no token for what the vocabulary does not hold")
    spaces = Spaces(
        prefix=fields.boolean(PREFIX + "add_space_prefix", _T5.space_prefix),
        merged=fields.boolean(PREFIX + "remove_extra_whitespaces", False),
    )
    encoder = unigram_encoder(vocab, unknown, spaces, _character_map(fields))
    return _assemble(fields, vocab, encoder, plain_bytes, _T5)


def _character_map(fields: Fields) -> CharacterMap | None:
    key = PREFIX + "precompiled_charsmap"
    if key not in fields.metadata:
        return None
    raw = np.asarray(fields.metadata[key])
    if raw.ndim != 1 or raw.dtype not in (np.uint8, np.int8):
        raise fields.error(key, f"an array of {raw.dtype} given; expected bytes")
    try:
        return CharacterMap(raw.tobytes())
    except CheckpointError as error:
        raise fields.error(key, str(error)) from None


def _assemble(
    fields: Fields, vocab: Vocab, encoder: Encoder, normal_bytes: Callable[[str], bytes], defaults: _Defaults
) -> GgufTokenizer:
    special = read_special(fields, vocab, defaults.ids)
    adds_bos = fields.boolean(PREFIX + "add_bos_token", defaults.adds_bos)
    if adds_bos and "bos" not in special.ids:
        raise fields.error(PREFIX + "add_bos_token", "true, and no token is BOS: set tokenizer.ggml.bos_token_id")
    found = find_special(fields, special.vocab)
    user_defined = [token for token in found if special.vocab.types[token.id] is TokenType.USER_DEFINED]
    named = {role: special.vocab.tokens[i] for role, i in special.ids.items() if role in _TEMPLATE_ROLES}
    return GgufTokenizer(
        vocab_size=len(vocab.tokens),
        bos_id=special.ids.get("bos"),
        eos_ids=special.ends,
        adds_bos=adds_bos,
        special_tokens={f"{role}_token": name for role, name in named.items()},
        chat_template=fields.string("tokenizer.chat_template"),
        eos_id=special.ids.get("eos"),
        adds_eos=fields.boolean(PREFIX + "add_eos_token", defaults.adds_eos),
        _encoder=encoder,
        _piece=pieces(special.vocab, normal_bytes),
        _special=SpecialTokens(found),
        _user_defined=SpecialTokens(user_defined),
        _prefix="",
        _drops_space=fields.boolean(PREFIX + "add_space_prefix", defaults.space_prefix),
    )
