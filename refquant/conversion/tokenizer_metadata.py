"""The tokenizer of a Hugging Face folder as GGUF metadata, the keys that llama.cpp's converter writes in its order.

Which file is read depends on the architecture (spec/tokenizer.md, section 7).
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import tokenizers

from refquant.checkpoints.gguf_values import Value, ValueType, boolean, numbers, string, strings, u32
from refquant.conversion.sentencepiece_metadata import (
    MODEL,
    declared_tokens,
    declared_tokens_phi3,
    from_json,
    from_model,
    is_sentencepiece_json,
    looks_special,
)
from refquant.conversion.special_vocab import special_values
from refquant.conversion.tokenizer_files import TokenizerFolder
from refquant.errors import CheckpointError, ModelError, unknown_name
from refquant.models.gguf_encoders import SPACE
from refquant.models.gguf_vocab import PREFIX, TokenType

# The architectures, by GGUF's names, and how many tokens each has where config.json does not say.
VOCAB_SIZES: Final = {
    "llama": 32000,
    "qwen2": 151936,
    "qwen3": 151936,
    "gemma2": 256000,
    "gemma3": 262208,
    "phi3": 32064,
    "gpt2": 50257,
}

_CODE_LLAMA: Final = 32016  # tokens
_GRANITE: Final = 49152
_HASHES: Final = Path(__file__).with_name("pre_tokenizer_hashes.txt")

# What a tokenizer is told by: its ids of this text. The text is llama.cpp's (conversion/base.py).
PROBE: Final = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 "
    "33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------======= "
    "нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? 'M not sure "
    "I'll make it, 'D you like some tea? We'Ve a'lL"
)


def tokenizer_metadata(folder: Path, architecture: str, pre: str | None = None) -> dict[str, Value]:
    """The `tokenizer.*` metadata of a folder, typed and in order.

    Args:
        folder: with tokenizer.json or tokenizer.model, and the files beside them.
        architecture: GGUF's name of it.
        pre: the pre-tokenizer of a byte-pair tokenizer; None: the one that its ids of a probe text tell.

    Raises:
        ModelError: no tokenizer file, or one that no known pre-tokenizer belongs to.
        CheckpointError: a broken file; the message names file and value.
        UnknownNameError: an architecture that is not one of `VOCAB_SIZES`.
        OSError: a file cannot be read.
    """
    if architecture not in VOCAB_SIZES:
        raise unknown_name("architecture", architecture, VOCAB_SIZES)
    try:
        return _metadata(TokenizerFolder(folder), architecture, pre)
    except (AttributeError, IndexError, KeyError, TypeError) as error:  # a list where an object must be, and the like
        raise CheckpointError(
            f"{folder}: tokenizer files that are not laid out as transformers does it: {error}"
        ) from None


def _metadata(files: TokenizerFolder, architecture: str, pre: str | None) -> dict[str, Value]:
    size = files.config.get("vocab_size", VOCAB_SIZES[architecture])
    if not isinstance(size, int) or size < 1:
        raise CheckpointError(f"{files.path / 'config.json'}: vocab_size is {size!r}; it must be a positive integer")
    match architecture:
        case "llama":
            return _llama(files, size, pre)
        case "qwen2" | "qwen3":
            return from_model(files, size, declared_tokens(files)) if files.has(MODEL) else _byte_pair(files, size, pre)
        case "gpt2":
            return _byte_pair(files, size, pre)
        case "phi3":
            byte_pair = (files.tokenizer_config or {}).get("tokenizer_class") == "GPT2Tokenizer"
            return _byte_pair(files, size, pre) if byte_pair else from_model(files, size, declared_tokens_phi3(files))
        case "gemma3" if not files.has(MODEL):
            return _byte_pair(files, size, pre)
        case _:  # gemma2, gemma3
            values = from_model(files, size, declared_tokens(files))
            return {**values, PREFIX + "add_space_prefix": boolean(False)}


def _llama(files: TokenizerFolder, size: int, pre: str | None) -> dict[str, Value]:
    values: dict[str, Value] = {}
    prefix = (files.tokenizer_config or {}).get("add_prefix_space")
    if isinstance(prefix, bool):
        values[PREFIX + "add_space_prefix"] = boolean(prefix)
    if files.has(MODEL):
        values |= from_model(files, size, declared_tokens(files))
    elif is_sentencepiece_json(files):
        values |= from_json(files)
    else:
        values |= _byte_pair(files, size, pre)
    if size == _CODE_LLAMA:
        values.setdefault(PREFIX + "eot_token_id", u32(32010))
    if size == _GRANITE:
        values[PREFIX + "add_bos_token"] = boolean(False)
    return values


def _byte_pair(files: TokenizerFolder, size: int, pre: str | None) -> dict[str, Value]:
    tokens, types = _byte_pair_tokens(files, size)
    values = {
        PREFIX + "model": string("gpt2"),
        PREFIX + "pre": string(pre or recognised_pre_tokenizer(files)),
        PREFIX + "tokens": strings(tokens),
        PREFIX + "token_type": numbers(ValueType.I32, np.array(types, np.int32)),
    }
    merges = _merges(files)
    if merges:
        values[PREFIX + "merges"] = strings(merges)
    return values | special_values(files, None)


def _byte_pair_tokens(files: TokenizerFolder, size: int) -> tuple[list[str], list[TokenType]]:
    by_id = {i: token for token, i in files.library.get_vocab(with_added_tokens=True).items()}
    added = files.library.get_added_tokens_decoder()
    if by_id and max(by_id) >= size:
        raise CheckpointError(
            f"{files.path}: token {by_id[max(by_id)]!r} has id {max(by_id)}; config.json's vocab_size is {size}"
        )
    tokens, types = [], []
    for i in range(size):
        if i not in by_id:
            tokens.append(f"[PAD{i}]")
            types.append(TokenType.UNUSED)
        elif i not in added:
            tokens.append(by_id[i])
            types.append(TokenType.NORMAL)
        else:
            token, kind = _added(files, added[i])
            tokens.append(token)
            types.append(kind)
    return tokens, types


def _added(files: TokenizerFolder, token: tokenizers.AddedToken) -> tuple[str, TokenType]:
    """An added token as llama.cpp finds it in a text: already normalized."""
    text = token.content
    if not token.normalized:
        text = files.library.decode(files.library.encode(text, add_special_tokens=False).ids, skip_special_tokens=False)
    if token.special or looks_special(text):
        return text, TokenType.CONTROL
    return text.replace(SPACE, " "), TokenType.USER_DEFINED


def _merges(files: TokenizerFolder) -> list[str]:
    """The merges, two texts with a space between; a space within one is written in GPT-2's letters."""
    given = ((files.tokenizer or {}).get("model") or {}).get("merges") or []
    if all(isinstance(merge, str) for merge in given):
        return list(given)
    try:
        return [" ".join(part.replace(" ", chr(256 + 32)) for part in (left, right)) for left, right in given]
    except (AttributeError, TypeError, ValueError):
        raise CheckpointError(f"{files.path / 'tokenizer.json'}: merges: not all are pairs of texts") from None


def recognised_pre_tokenizer(files: TokenizerFolder) -> str:
    """The name of the pre-tokenizer, by the hash of the ids of a probe text.

    Raises:
        ModelError: the hash is none of those that llama.cpp knows.
    """
    digest = hashlib.sha256(str(files.library.encode(PROBE).ids).encode()).hexdigest()
    name = known_hashes().get(digest)
    if name is None:
        raise ModelError(
            f"{files.path / 'tokenizer.json'}: no pre-tokenizer that llama.cpp knows gives these ids (the ids of the "
            f"probe text hash to {digest}): say which one it is"
        )
    return name


@cache
def known_hashes() -> dict[str, str]:
    """The pre-tokenizer of each hash."""
    lines = _HASHES.read_text(encoding="ascii").splitlines()
    return dict(line.split() for line in lines if not line.startswith("#"))
