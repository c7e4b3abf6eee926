import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refquant.errors import CheckpointError, ModelError, RefquantError, UnknownNameError
from refquant.models import unicode_classes
from refquant.models.gguf_encoders import BYTE_LETTERS
from refquant.models.gguf_tokenizer import from_metadata
from refquant.models.pair_merging import cut_before, merge_pairs, word_starts
from refquant.models.pretokenizers import PRE_TOKENIZERS, pre_tokenizer, words
from refquant.models.special_tokens import SpecialToken, SpecialTokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
TEXT = st.text(st.sampled_from("ab e\n\t\0<s>é漢😀▁\ufffd") | st.characters(codec="utf-8"), max_size=40)


def metadata(model, tokens, kinds=None, **more):
    """Metadata of a tokenizer; `kinds` by token where not normal."""
    types = [(kinds or {}).get(token, NORMAL) for token in tokens]
    values = {"model": model, "tokens": list(tokens), "token_type": np.array(types, np.int32), **more}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def byte_pairs(merges=(), extra=(), kinds=None, pre="gpt-2", **more):
    made = [merge.replace(" ", "") for merge in merges]
    tokens = [*BYTE_LETTERS, *dict.fromkeys(made), *extra]
    return from_metadata(metadata("gpt2", tokens, kinds, merges=list(merges), pre=pre, **more))


def sentencepiece(scored, kinds=None, **more):
    """A `llama` vocabulary: three special tokens, the bytes, and texts with scores."""
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *scored]
    types = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, **dict.fromkeys(BYTE_TOKENS, BYTE), **(kinds or {})}
    scores = np.array([0.0] * 259 + list(scored.values()), np.float32)
    return from_metadata(metadata("llama", tokens, types, scores=scores, **more))


def unigram(scored, kinds=None, **more):
    tokens = ["<pad>", "</s>", "<unk>", *scored]
    scores = np.array([0.0, 0.0, 0.0, *scored.values()], np.float32)
    types = {"<pad>": CONTROL, "</s>": CONTROL, "<unk>": UNKNOWN, **(kinds or {})}
    return from_metadata(metadata("t5", tokens, types, scores=scores, **more))


def spelt(tokenizer, text):
    """The pieces of a text, by the bytes that each token stands for."""
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


# Byte-pair encoding


def test_the_merge_of_the_lowest_rank_comes_first_and_among_equals_the_leftmost():
    assert spelt(byte_pairs(["b c", "a b"]), "abc") == ["a", "bc"]
    assert spelt(byte_pairs(["a b", "b c"]), "abc") == ["ab", "c"]
    assert spelt(byte_pairs(["a a"]), "aaa") == ["aa", "a"]


def test_of_a_merge_that_comes_twice_the_first_place_counts():
    assert spelt(byte_pairs(["a b", "b c", "a b"]), "abc") == ["ab", "c"]


def test_a_merge_that_makes_no_token_leaves_the_letters_it_is_made_of():
    tokens = [*BYTE_LETTERS, "abc"]
    tokenizer = from_metadata(metadata("gpt2", tokens, merges=["a b", "x y"], pre="gpt-2"))
    assert tokenizer.encode("ab").tolist() == [BYTE_LETTERS.index("a"), BYTE_LETTERS.index("b")]


def test_a_letter_that_is_no_token_is_left_out():
    tokenizer = from_metadata(metadata("gpt2", ["a", "b"], merges=[], pre="gpt-2"))
    assert tokenizer.encode("a?é b").tolist() == [0, 1]


def test_only_some_pre_tokenizers_take_a_word_that_is_a_token_whole():
    for pre, whole in (("llama-bpe", True), ("gpt-2", False)):
        tokenizer = byte_pairs(extra=["xyz", "<s>"], kinds={"<s>": CONTROL}, pre=pre, bos_token_id=257)
        assert spelt(tokenizer, "xyz") == (["xyz"] if whole else ["x", "y", "z"])
        assert tokenizer.adds_bos == whole


def test_gemma_4_writes_spaces_as_a_block_and_bytes_as_tokens():
    tokens = ["<bos>", *BYTE_TOKENS, "a", "b", "▁", "▁a", "b▁", "\n\n"]
    merges = ["▁ a", "b ▁"]
    kinds = {"<bos>": CONTROL, **dict.fromkeys(BYTE_TOKENS, BYTE)}
    tokenizer = from_metadata(metadata("gemma4", tokens, kinds, merges=merges, bos_token_id=0, add_bos_token=False))
    assert tokenizer.adds_bos  # whatever the file says
    assert spelt(tokenizer, "b a\n\né") == ["b", " a", "\n\n", "\ufffd", "\ufffd"]
    assert tokenizer.decode(tokenizer.encode("b a\n\né")) == "b a\n\né"


@given(st.text("ab", max_size=12), st.permutations(["a b", "b a", "a a", "b b", "ab a", "a ba", "aa b", "ab ab"]))
def test_merging_with_a_heap_is_merging_the_best_pair_again_and_again(text, merges):
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(merges)}
    symbols = list(text)
    while pairs := [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        _, i = min(pairs)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    assert merge_pairs(list(text), lambda left, right: ranks.get((left, right))) == symbols


def test_a_long_word_is_merged_in_one_go():
    assert len(byte_pairs(["a a", "aa aa", "aaaa aaaa"]).encode("a" * 40_000)) == 5_000


# Pre-tokenizers


@given(TEXT, st.sampled_from(sorted(PRE_TOKENIZERS)))
@example("1234567 x\n\n don't", "afmoe")
@example("  \u3000a  ", "superbpe")
def test_words_are_the_text_in_order_and_without_loss(text, name):
    found = list(words(text, pre_tokenizer(name).patterns))
    assert "".join(found) == text
    assert all(found) or not text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-2", ["It", "'s", " 2024", ",", " don", "'", "T", " ", " x", "\n\n"]),
        ("llama-bpe", ["It", "'s", " ", "202", "4", ",", " don", "'T", " ", " x", "\n\n"]),
        ("qwen2", ["It", "'s", " ", "2", "0", "2", "4", ",", " don", "'T", " ", " x", "\n\n"]),
        ("smollm", ["It", "'s", " ", "2", "0", "2", "4", ",", " don", "'", "T", " ", " x", "\n\n"]),
        ("gemma4", ["It's 2024, don'T  x", "\n\n"]),
        ("superbpe", ["It's ", "2", "024", ", don'T  x\n\n"]),
    ],
)
def test_pre_tokenizers_differ_in_digits_contractions_and_spaces(name, expected):
    assert list(words("It's 2024, don'T  x\n\n", pre_tokenizer(name).patterns)) == expected


def test_digits_from_the_right_are_cut_behind_each_group_and_not_before_the_first():
    assert list(words("\u03781234", pre_tokenizer("afmoe").patterns)) == ["\u03781", "234"]
    assert list(words("123456 12", pre_tokenizer("tiny_aya").patterns)) == ["123", "456", " ", "12"]


def test_letters_marks_and_spaces_beyond_ascii_are_known_by_their_class():
    assert list(words("é漢\u0301\u3000٣😀", pre_tokenizer("gpt-2").patterns)) == ["é漢", "\u0301", "\u3000", "٣", "😀"]
    assert unicode_classes.by_class("a\u2003\u00e9") == "a\x0b\x82"


def test_a_pre_tokenizer_that_is_not_known_is_an_error_that_names_near_ones():
    with pytest.raises(UnknownNameError, match=r"'lama-bpe'; did you mean 'llama-bpe'"):
        byte_pairs(pre="lama-bpe")


def test_a_changed_table_of_classes_is_refused(monkeypatch, tmp_path):
    (tmp_path / "table.txt").write_text("80L")
    monkeypatch.setattr(unicode_classes, "_TABLE", tmp_path / "table.txt")
    unicode_classes._stand_ins.cache_clear()
    with pytest.raises(RefquantError, match="install refquant again"):
        unicode_classes.by_class("é")
    monkeypatch.undo()
    assert unicode_classes.by_class("é") == "\x82"


# SentencePiece's byte-pair encoding


def test_the_pair_whose_token_has_the_best_score_merges_first():
    assert spelt(sentencepiece({"a": -9, "b": -9, "c": -9, "ab": -2, "bc": -1}, add_space_prefix=False), "abc") == [
        "a",
        "bc",
    ]
    assert spelt(sentencepiece({"a": -9, "aa": -1, "aaa": -1}, add_space_prefix=False), "aaaa") == ["aaa", "a"]


def test_a_character_that_is_no_token_becomes_its_bytes():
    tokenizer = sentencepiece({"a": -1}, add_space_prefix=False)
    assert tokenizer.encode("aé").tolist() == [259, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([259, 3 + 0xC3, 3 + 0xA9]) == "aé"


def test_a_byte_without_a_token_is_an_error_that_names_it():
    tokenizer = from_metadata(metadata("llama", ["<unk>", "<s>", "</s>", "a"]))
    with pytest.raises(RefquantError, match=r"no token for byte 0xE2, neither <0xE2>"):
        tokenizer.encode("a b")


def test_text_is_given_a_space_at_the_start_and_behind_special_tokens():
    tokenizer = sentencepiece({"▁": -3, "a": -3, "▁a": -1})
    assert tokenizer.encode("a<s>a a").tolist() == [261, 1, 261, 261]
    assert tokenizer.decode([261, 1, 261, 261]) == "a a a"
    assert tokenizer.encode("").tolist() == []
    assert sentencepiece({"▁": -3, "a": -3, "▁a": -1}, add_space_prefix=False).encode("a").tolist() == [260]


@given(st.text("ab ", max_size=12), st.lists(st.sampled_from([-1.0, -2.0, -3.0]), min_size=8, max_size=8))
def test_cutting_a_text_into_words_changes_no_ids(text, scores):
    tokens = ["a", "b", "▁", "▁a", "▁▁", "ab", "b▁", "▁b▁"]
    vocab = dict(zip(tokens, scores, strict=True))
    tokenizer = sentencepiece(vocab, add_space_prefix=False)
    symbols = merge_pairs(
        list(text.replace(" ", "▁")), lambda left, right: -vocab[left + right] if left + right in vocab else None
    )
    assert spelt(tokenizer, text) == [symbol.replace("▁", " ") for symbol in symbols]


def test_a_text_is_cut_before_a_marker_unless_a_token_holds_it_behind_that_character():
    starts = word_starts(["a", "▁▁", "b▁c"], "▁")
    assert cut_before("a▁x▁▁b▁c▁", starts) == ["a", "▁x", "▁▁b▁c", "▁"]


# Unigram


def test_the_most_probable_tokens_are_taken():
    tokenizer = unigram({"▁": -1, "a": -2, "b": -2, "ab": -5, "▁ab": -2.5, "abab": -3}, add_space_prefix=True)
    assert tokenizer.encode("abab").tolist() == [3, 8]
    assert tokenizer.encode("ab").tolist() == [7]


def test_a_run_of_unknown_characters_is_one_token():
    tokenizer = unigram({"▁": -1, "a": -2})
    assert tokenizer.encode("aéüa é").tolist() == [4, 2, 4, 3, 2]


def test_an_unknown_character_is_less_probable_than_any_token():
    assert unigram({"éa": -8, "a": 1}).encode("éa").tolist() == [3]  # −8 against −8 − 10 + 1


def test_user_defined_tokens_cost_nothing():
    scored = {"a": -1, "b": -1, "ab": -90}
    assert unigram(scored).encode("ab").tolist() == [3, 4]
    assert unigram(scored, {"ab": USER_DEFINED}).encode_literal("ab").tolist() == [5]


def test_spaces_are_merged_where_the_file_says_so():
    scored = {"▁": -1, "a": -2}
    assert unigram(scored).encode("  a  a ").tolist() == [3, 3, 4, 3, 3, 4, 3]
    assert unigram(scored, remove_extra_whitespaces=True).encode("  a  a ").tolist() == [3, 4, 3, 4]


def character_map(*words, strings=b"x\0"):
    return np.frombuffer(struct.pack(f"<I{len(words)}I", 4 * len(words), *words) + strings, np.uint8)


def test_a_character_map_replaces_what_the_text_begins_with():
    nodes = [0] * 0x100
    nodes[0] = 1 << 10  # the root's base is 1: its child for "A" is at 1 ^ 0x41
    nodes[0x40] = 1 << 10 | 1 << 8 | 0x41  # a replacement ends here; its place is at 0x40 ^ 1
    nodes[0x41] = 0x80000000
    tokenizer = unigram({"▁": -1, "x": -2, "b": -2}, precompiled_charsmap=character_map(*nodes))
    assert tokenizer.encode("AbA").tolist() == [4, 5, 4]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (np.zeros(2, np.uint8), "has 2 bytes in all"),
        (character_map(1, strings=b""), "trie has 4 bytes"),
        (np.zeros(9, np.float32), "expected bytes"),
    ],
)
def test_a_broken_character_map_is_refused(raw, problem):
    with pytest.raises(CheckpointError, match=rf"precompiled_charsmap.*{problem}"):
        unigram({"a": -1}, precompiled_charsmap=raw)


def test_a_character_map_that_leads_out_of_itself_is_an_error():
    tokenizer = unigram({"a": -1}, precompiled_charsmap=character_map(1 << 20))
    with pytest.raises(CheckpointError, match="leads to node"):
        tokenizer.encode("a")


# Special tokens


def test_special_tokens_in_a_text_are_parsed_and_in_a_literal_text_only_user_defined_ones():
    tokenizer = byte_pairs(extra=["<s>", "<mine>"], kinds={"<s>": CONTROL, "<mine>": USER_DEFINED})
    assert tokenizer.encode("a<s><mine>").tolist() == [BYTE_LETTERS.index("a"), 256, 257]
    assert tokenizer.encode_literal("<s><mine>").tolist() == [*map(BYTE_LETTERS.index, "<s>"), 257]


def test_the_longest_special_token_is_found_first_wherever_it_stands():
    special = SpecialTokens([SpecialToken(1, "<a"), SpecialToken(2, "a><b"), SpecialToken(3, "b>")])
    assert special.partition("<a><b>") == ["<", 2, ">"]
    assert special.partition("<ab>x<a") == [1, 3, "x", 1]
    assert special.partition("") == []


def test_phi_3_takes_the_white_space_behind_a_special_token_with_it():
    values = metadata("llama", ["<unk>", "<s>", "</s>", *BYTE_TOKENS, "<|end|>"], {"<|end|>": CONTROL})
    values |= {"tokenizer.ggml.add_space_prefix": False, "general.name": "Phi-3 mini"}
    assert from_metadata(values).encode("<|end|> \n <|end|>").tolist() == [259, 259]
    assert from_metadata(values | {"general.name": "other"}).encode("<|end|>\n").tolist() == [259, 3 + 10]


def test_tokens_that_end_a_text_are_known_by_name_and_are_control_tokens():
    tokenizer = byte_pairs(extra=["<|im_end|>", "<|file_sep|>", "<|eom_id|>", "</s>"], eos_token_id=300)
    assert tokenizer.eos_ids == {11, 256, 257, 258, 259}  # 300 is beyond the vocabulary: the default stays
    assert tokenizer.decode([256]) == ""


def test_an_end_of_another_family_is_not_an_end():
    assert 256 not in byte_pairs(extra=["<|end|>", "<|return|>", "<|call|>"]).eos_ids
    tokenizer = byte_pairs(extra=["</s>", "<|tool_response>"])
    assert 256 not in tokenizer.eos_ids
    assert tokenizer.decode([256]) == "</s>"


def test_special_tokens_have_the_names_that_chat_templates_use():
    values = metadata("llama", ["<unk>", "<s>", "</s>", "<p>"], {"<s>": CONTROL}, padding_token_id=3) | {
        "tokenizer.chat_template": "{{ x }}"
    }
    tokenizer = from_metadata(values)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<p>"}
    assert (tokenizer.special_tokens, tokenizer.chat_template) == (names, "{{ x }}")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos, tokenizer.adds_eos) == (1, 2, True, False)
    assert tokenizer.encode_prompt("<s>").tolist() == [1, 1]


# Text from ids


@given(TEXT)
@example(" ")
@example("  a")
def test_decoding_what_was_encoded_gives_the_text_back(text):
    for tokenizer in (byte_pairs(["h e", "Ġ t"]), sentencepiece({"▁": -3, "a": -3, "▁a": -1}, {"<unk>": UNUSED})):
        ids = tokenizer.encode_literal(text)
        assert tokenizer.decode(ids) == text.replace("▁", " " if tokenizer.adds_bos else "▁")
        stream = tokenizer.stream()
        assert "".join([*map(stream.push, ids.tolist()), stream.flush()]) == tokenizer.decode(ids)


def test_a_stream_that_continues_a_text_keeps_the_space_that_decoding_drops():
    tokenizer = sentencepiece({"▁a": -1})
    assert tokenizer.stream().push(259) == "a"
    assert tokenizer.stream([1]).push(259) == "a"
    assert tokenizer.stream([1, 259]).push(259) == " a"


def test_a_stream_holds_half_a_character_back():
    stream = byte_pairs().stream()
    emoji = [BYTE_LETTERS.index(BYTE_LETTERS[byte]) for byte in "😀".encode()]
    assert [stream.push(i) for i in emoji] == ["", "", "", "😀"]
    assert (stream.push(emoji[0]), stream.flush()) == ("", "\ufffd")


def test_tokens_stand_for_what_their_type_says():
    texts = {"▁u": USER_DEFINED, "<0x41>": BYTE, "<0xZ>": BYTE, "unused": UNUSED, "undefined": 9, "▁n": NORMAL}
    tokenizer = from_metadata(metadata("llama", ["<unk>", "<s>", "</s>", *texts], texts, add_space_prefix=False))
    assert [tokenizer.decode([3 + i]) for i in range(6)] == ["▁u", "A", "\0", "", "", " n"]
    assert byte_pairs(extra=["Ġ漢"]).decode([256]) == " [UNK_BYTE_0xe6bca2Ġ漢]"


def test_ids_beyond_the_vocabulary_have_no_text_and_ids_below_zero_are_errors():
    assert byte_pairs().decode([10_000]) == ""
    with pytest.raises(RefquantError, match="token id -1"):
        byte_pairs().decode([-1])


# Metadata that will not do


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokens": ["a", "b", "a"]}, "tokens 0 and 2 are both 'a'"),
        ({"tokens": 3}, "expected an array of strings"),
        ({"tokens": ["a", 1]}, "expected an array of strings"),
        ({"merges": "a b"}, "expected an array of strings"),
        ({"token_type": np.ones(1, np.int32)}, "1 values for 2 tokens"),
        ({"token_type": ["x", "y"]}, "expected an array of numbers"),
        ({"scores": np.ones((2, 2))}, "expected an array of numbers"),
        ({"bos_token_id": "x"}, "expected an integer"),
        ({"add_bos_token": 1}, "expected true or false"),
        ({"add_bos_token": True}, "no token is BOS"),
        ({"pre": 3}, "expected a string"),
    ],
)
def test_metadata_of_the_wrong_kind_is_refused_by_key(change, problem):
    values = metadata("gpt2", ["a", "b"], merges=["a b"], pre="gpt-2")
    values |= {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(CheckpointError, match=rf"^x.gguf: metadata 'tokenizer.ggml.{next(iter(change))}': .*{problem}"):
        from_metadata(values, "x.gguf")


@pytest.mark.parametrize("key", ["tokens", "merges", "model"])
def test_metadata_that_is_missing_is_named(key):
    values = metadata("gpt2", ["a", "b"], merges=["a b"], pre="gpt-2")
    del values[f"tokenizer.ggml.{key}"]
    with pytest.raises(CheckpointError, match=rf"'tokenizer.ggml.{key}': missing"):
        from_metadata(values)


@pytest.mark.parametrize("model", ["bert", "rwkv", "plamo2", "hybriddna", "whitespace", "none", "new"])
def test_a_tokenizer_model_that_refquant_lacks_is_an_error_that_names_it(model):
    with pytest.raises(ModelError, match=f"tokenizer.ggml.model is '{model}'"):
        from_metadata(metadata(model, ["a"]))


def test_a_token_without_text_gets_a_name_of_its_own():
    tokenizer = from_metadata(metadata("gpt2", ["", "a", ""], merges=[], pre="gpt-2"))
    assert [tokenizer.decode([i]) for i in range(3)] == ["[EMPTY_0]", "a", "[EMPTY_2]"]


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(RefquantError, match="surrogates not allowed at character 1"):
        byte_pairs().encode("a\ud800")
