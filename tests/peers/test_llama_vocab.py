"""Tokenizers of GGUF files against llama.cpp's: ids, pieces and special tokens, for its own vocabularies and others."""

import random
from functools import cache

import gguf
import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from refquant.checkpoints.gguf_split import open_gguf
from refquant.models.gguf_encoders import BYTE_LETTERS
from refquant.models.gguf_tokenizer import from_metadata
from refquant.models.pretokenizers import PRE_TOKENIZERS
from refquant.models.tokenizer import load_tokenizer
from tests.peers import llama_cpp, smollm2
from tests.peers.llama_vocab import LlamaVocab

pytestmark = pytest.mark.peers

# The vocabularies in llama.cpp's models/ but bert-bge, which is WordPiece.
FILES = (
    "aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "gpt-neox",
    "llama-bpe", "llama-spm", "mpt", "nomic-bert-moe", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip
WITH_TEXTS = tuple(name for name in FILES if name not in ("aquila", "baichuan", "gpt-neox", "nomic-bert-moe"))

# What the patterns of pre-tokenizers tell apart: cases, contractions, digits, every kind of white space, marks, CJK,
# punctuation and symbols in and beyond ASCII, and code points that Unicode 15.1 has and 14.0 has not.
HARD = [
    *"aBzZ sStTdDmM''relLvV0123456789 \n\r\t\v\f\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff",
    *"!\"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\0\x7f",
    *"éßÀÿĀǅʰªµſİıΩжЖאب१٣²½Ⅷ〇一龥龦漢鿿㐀豈𠀀𪛠𫜴𫠠가힣ㄱㅏㄅㆎぁんァン･ﾟ、。〿！～“”‘’…—：；，،؛।۔",
    *"\u0301\u0308\u0e33\u0e40\u093f\u20dd\ufe0f\u200d€£¬©™←∑😀👨🇩\ue000\ufffd\uffff\U000e0041\U0010ffff",
    *"\u2ffc\u31ef\U00011f02\U00011f50\U0001e4d0\u0378\ufada\U0002a6e0\U0002fa1f\u1885\ua9e6\u0ec6\u1780\u1000",
    "'s", "'S", "'re", "'LL", "'ve ", " 'd", "  ", "   ", "\n\n", "\r\n", " \n", "1234", "12345", "1234567",
    "IMGIMGABZ", "<sentinel:12>", "    ", "hello", " World",
    "x.y", "don't", "<s>", "</s>", "<unk>", "<|im_end|>", "<|endoftext|>",
    "<0x0A>", "▁", "▁▁", "<mask>", "<|end|>",
]  # fmt: skip
PARTS = st.sampled_from(HARD) | st.characters(codec="utf-8") | st.text(st.characters(codec="utf-8"), max_size=8)
TEXTS = st.lists(st.lists(PARTS, max_size=30).map("".join), min_size=4, max_size=12)


@cache
def pair(path):
    """Ours and llama.cpp's tokenizer of a file."""
    return from_metadata(open_gguf(path).metadata, path.name), LlamaVocab(path)


def vocabulary(name):
    return pair(llama_cpp.source() / "models" / f"ggml-vocab-{name}.gguf")


def assert_same_ids(ours, theirs, text):
    assert ours.encode(text).tolist() == theirs.encode(text), (text, "special tokens parsed")
    assert ours.encode_literal(text).tolist() == theirs.encode(text, special=False), (text, "literal")


@pytest.mark.parametrize("name", WITH_TEXTS)
def test_the_texts_that_llama_cpp_keeps_for_a_vocabulary_get_the_ids_it_keeps(name):
    ours, theirs = vocabulary(name)
    path = llama_cpp.source() / "models" / f"ggml-vocab-{name}.gguf"
    end = "\n__ggml_vocab_test__\n"
    texts = path.with_suffix(".gguf.inp").read_bytes().decode().removesuffix(end).split(end)
    kept = path.with_suffix(".gguf.out").read_text().splitlines()
    for text, ids in zip(texts, kept, strict=True):
        assert ours.encode_literal(text).tolist() == list(map(int, ids.split())), text
        assert_same_ids(ours, theirs, text)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_token_has_the_bytes_and_the_file_the_special_tokens_that_llama_cpp_finds(name):
    ours, theirs = vocabulary(name)
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id) == tuple(None if i < 0 else i for i in (theirs.bos, theirs.eos))
    assert (ours.adds_bos, ours.adds_eos) == (theirs.adds_bos, theirs.adds_eos)
    assert ours.eos_ids == theirs.ends()
    stream = ours.stream([theirs.encode("a")[0]])
    for token in range(len(theirs)):
        piece = theirs.piece(token)
        assert (stream.push(token) + stream.flush()) == piece.decode("utf-8", "replace"), (token, piece)


@pytest.mark.parametrize("name", FILES)
@given(texts=TEXTS)
@example(texts=["", " ", "\n", "a" * 500, " " * 300 + "x", "\n" * 70 + " a", "1" * 50, "<s> a</s> <unk> b <s>"])
def test_hard_texts_get_llama_cpps_ids(name, texts):
    for text in texts:
        assert_same_ids(*vocabulary(name), text)


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "nomic-bert-moe", "command-r", "qwen2"])
@given(texts=TEXTS)
def test_decoding_and_streaming_give_llama_cpps_bytes(name, texts):
    ours, theirs = vocabulary(name)
    for text in texts:
        ids = theirs.encode(text)
        expected = b"".join(theirs.piece(i) for i in ids)
        if name in ("llama-spm", "phi-3", "nomic-bert-moe"):
            expected = expected.removeprefix(b" ")
        assert ours.decode(ids) == expected.decode("utf-8", "replace")
        stream = ours.stream()
        assert "".join([*map(stream.push, ids), stream.flush()]) == expected.decode("utf-8", "replace")
        if not ids or theirs.piece(ids[0]):  # llama.cpp drops a space from the first token alone, be it a special one
            assert ours.decode(ids) == theirs.decode(ids).decode("utf-8", "replace")


def write_byte_pairs(path, pre, seed):
    """A byte-pair vocabulary in which any two bytes that meet in a text may merge, by ranks drawn at random.

    A pre-tokenizer that cuts in another place than it should thus shows in the ids. Some words are tokens that no merge
    makes, for those that take words whole.
    """
    draw = random.Random(seed)
    ascii_bytes = b" \n\r\t\v\x1c'stmdrelvaBZ0123456789.,!-_/<[$+`IMGx"
    lasts = [*ascii_bytes, *range(0x80, 0xC0)]
    firsts = [*ascii_bytes, *range(0xC2, 0xF5)]
    plain = pre in ("gemma4", "granite-embed-multi-311m", "sarvam-moe")
    if plain:
        letters = [*"abAB12\n.'é漢😀\u2581", *(f"<0x{byte:02X}>" for byte in range(256))]
        pairs = [(a, b) for a in letters[:13] for b in letters[:13]]
    else:
        letters = list(BYTE_LETTERS)
        pairs = [(BYTE_LETTERS[a], BYTE_LETTERS[b]) for a in lasts for b in firsts]
    draw.shuffle(pairs)
    whole = ["\u0120World", "hello", "\u0120\u0120\u0120", "123", "\u010a\u010a"] if not plain else ["\n\n", "\n\n\n\n"]
    tokens = list(dict.fromkeys([*letters, *("".join(pair) for pair in pairs), *whole, "<s>", "<user>"]))
    kinds = [gguf.TokenType.NORMAL] * (len(tokens) - 2) + [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED]
    if plain:
        kinds = [
            gguf.TokenType.BYTE if token.startswith("<0x") else kind for token, kind in zip(tokens, kinds, strict=True)
        ]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in pairs])
    finish(writer)


def finish(writer):
    """Write the file, with what llama.cpp asks of any model."""
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shuffled_texts():
    """Texts of everything hard, in orders that stay."""
    draw = random.Random(1)
    return ["".join(draw.choices(HARD, k=60)) for _ in range(12)]


# Names of the same pre-tokenizer are tried on fewer texts, the first of them on many.
FIRST_OF_ITS_KIND = {pre: name for name, pre in sorted(PRE_TOKENIZERS.items(), reverse=True)}


def names_by_cost():
    for name in sorted(PRE_TOKENIZERS):
        yield pytest.param(name, marks=() if name in FIRST_OF_ITS_KIND.values() else pytest.mark.slow)


@pytest.mark.parametrize("name", list(names_by_cost()))
def test_every_pre_tokenizer_cuts_where_llama_cpp_does(name, tmp_path_factory):
    path = tmp_path_factory.mktemp("pre") / "vocab.gguf"
    write_byte_pairs(path, name, seed=1)
    ours, theirs = from_metadata(open_gguf(path).metadata), LlamaVocab(path)
    assert (ours.bos_id or -1, ours.adds_bos) == (theirs.bos, theirs.adds_bos)
    is_first = name in FIRST_OF_ITS_KIND.values()

    @settings(phases=Phase if is_first else [Phase.explicit])
    @given(TEXTS)
    @example(["hello World   World 123 1234\n\n 12345", "12345678901 123456", "<user>a <s>\n\n\n\n\n"])
    @example(["िB", "aिB", "Bिa 'sि"])  # a mark, which some let stand before a word as well as in it
    @example(shuffled_texts())
    def check(texts):
        for text in texts:
            assert_same_ids(ours, theirs, text)

    try:
        check()
    finally:
        theirs.close()


def test_smollm2_reads_wikitext_as_llama_cpp_and_as_tokenizer_json_do():
    ours, theirs = pair(smollm2.gguf_path())
    text = smollm2.wikitext()
    ids = ours.encode(text)
    assert len(ids) == 312_144
    assert ids.tolist() == theirs.encode(text)
    assert np.array_equal(ids, load_tokenizer(smollm2.folder()).encode(text))
    assert ours.decode(ids) == text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-spm", "gemma-4", "deepseek-llm"])
def test_a_long_text_gets_llama_cpps_ids(name):
    text = smollm2.wikitext()[:200_000]
    assert_same_ids(*vocabulary(name), text)
