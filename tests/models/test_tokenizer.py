import contextlib
import json
import shutil

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refquant.errors import CheckpointError, ModelError, RefquantError
from refquant.models import embedded
from refquant.models.tokenizer import load_tokenizer

EMBEDDED = load_tokenizer(embedded.path())
# Characters that take one byte, two, three and four, in and out of the vocabulary, and the names of special tokens.
TEXT = st.text(st.sampled_from("ab e\n\t\0<s>é漢😀\u2581\ufffd") | st.characters(codec="utf-8"), max_size=40)


def byte_level_folder(folder, **config):
    """A small byte-level tokenizer, as GPT-2 and Llama 3 have it; merges cross the bytes of a character."""
    alphabet = sorted(bytes_to_letters().values())
    merges = [["h", "e"], ["Ġ", "t"], ["Ġt", "he"], ["Ģ", "ð"], ["ð", "Ł"], ["ðŁ", "ĺ"]]
    vocab = [*alphabet, *("".join(pair) for pair in merges), "<|end|>"]
    document = {
        "version": "1.0",
        "added_tokens": [
            {"id": len(vocab) - 1, "content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocab)}, "merges": merges},
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def bytes_to_letters():
    """GPT-2's alphabet: a printable character for every byte."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in kept]
    return {byte: chr(byte) for byte in kept} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return load_tokenizer(byte_level_folder(tmp_path_factory.mktemp("byte_level"), eos_token="<|end|>"))


@given(TEXT)
@example(" ")
@example("  a")
def test_decoding_what_was_encoded_gives_the_text_back(text):
    assert EMBEDDED.decode(EMBEDDED.encode(text)) == text


@given(text=TEXT)
def test_a_byte_level_tokenizer_gives_the_text_back(byte_level, text):
    assert byte_level.decode(byte_level.encode(text)) == text.replace("<|end|>", "")


def test_ids_are_int64_and_an_empty_text_has_none():
    assert EMBEDDED.encode("").shape == (0,)
    assert EMBEDDED.encode("").dtype == EMBEDDED.encode("a").dtype == np.int64


def test_bos_and_eos_have_no_text():
    ids = EMBEDDED.encode("Lily")
    assert EMBEDDED.decode([1, *ids, 2]) == "Lily"


def test_an_id_beyond_the_vocabulary_has_no_text_and_a_negative_one_is_an_error():
    assert EMBEDDED.decode([*EMBEDDED.encode("Lily"), 100_000]) == "Lily"
    for bad in (-1, 2**32):
        with pytest.raises(RefquantError, match=str(bad)):
            EMBEDDED.decode([bad])


def test_half_a_surrogate_pair_is_an_error_that_says_where():
    with pytest.raises(RefquantError, match="character 2"):
        EMBEDDED.encode("ab\udc80")


def streamed(tokenizer, ids, context=()):
    stream = tokenizer.stream(context)
    return [*(stream.push(i) for i in ids), stream.flush()]


@pytest.mark.parametrize("kind", ["embedded", "byte_level"])
@given(text=TEXT)
@example("😀😀")
@example("\n\n\n😀a")
@example("\ufffd" * 9)
@example("  a  b")
def test_streamed_pieces_join_to_the_text_and_never_hold_half_a_character(byte_level, kind, text):
    tokenizer = byte_level if kind == "byte_level" else EMBEDDED
    pieces = streamed(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == tokenizer.decode(tokenizer.encode(text))


def test_a_stream_after_a_context_keeps_the_space_before_its_first_word():
    first, second = EMBEDDED.encode("Lily"), EMBEDDED.encode("was")  # each begins with a space
    assert "".join(streamed(EMBEDDED, second, context=[1, *first])) == " was"
    assert "".join(streamed(EMBEDDED, second, context=[1])) == "was"


def test_a_stream_shows_every_character_as_soon_as_it_is_whole():
    stream = EMBEDDED.stream([1])
    emoji = [byte + 3 for byte in "😀".encode()]
    assert [stream.push(i) for i in emoji * 2] == ["", "", "", "😀"] * 2


def test_a_merge_that_ends_one_character_and_starts_the_next_is_split_between_pieces(byte_level):
    ids = byte_level.encode("a😀😀b")
    assert "Ģð" in [byte_level._library.id_to_token(int(i)) for i in ids]
    pieces = streamed(byte_level, ids)
    assert "".join(pieces) == "a😀😀b"
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 511), max_size=60))
@example([3 + 0xED, 3 + 0xA0])  # the start of a surrogate, for whose third byte Python would wait
def test_any_ids_stream_without_an_error_and_hold_back_no_more_than_a_character(ids):
    stream = EMBEDDED.stream()
    for i in ids:
        stream.push(i)
    assert len(stream.flush()) <= 1


def test_a_character_that_never_ends_comes_out_when_the_next_one_begins_or_at_the_flush():
    stream = EMBEDDED.stream([1])
    assert [stream.push(3 + 0xF0), *(stream.push(i) for i in EMBEDDED.encode("Lily"))] == ["", "\ufffd Lily"]
    assert stream.push(3 + 0xF0) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_a_replacement_character_of_the_vocabulary_comes_before_the_bytes_after_it(tmp_path):
    folder = copy_embedded(tmp_path)
    document = (folder / "tokenizer.json").read_text(encoding="utf-8").replace('"~"', '"\ufffd"')
    (folder / "tokenizer.json").write_text(document, encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("a\ufffdé漢a")
    assert "".join(streamed(tokenizer, ids)) == "a\ufffdé漢a"


def copy_embedded(folder, **config):
    """The embedded tokenizer with another tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    shutil.copy(embedded.path() / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_bos_is_added_where_the_config_says_so_and_else_as_the_post_processor_does(tmp_path):
    for config, expected in (
        ({"bos_token": "<s>"}, True),
        ({"bos_token": "<s>", "add_bos_token": True}, True),
        ({"bos_token": "<s>", "add_bos_token": False}, False),
        ({}, False),
    ):
        tokenizer = load_tokenizer(copy_embedded(tmp_path, **config))
        assert tokenizer.adds_bos is expected, config
        assert (tokenizer.encode_prompt("a")[:1].tolist() == [1]) is expected
        assert tokenizer.encode("a")[0] != 1


def test_a_tokenizer_without_bos_in_its_post_processor_adds_none(tmp_path):
    assert not load_tokenizer(byte_level_folder(tmp_path, bos_token="<|end|>")).adds_bos


def test_every_file_that_names_an_end_is_heard(tmp_path):
    folder = copy_embedded(tmp_path, eos_token={"content": "</s>", "special": True})
    (folder / "config.json").write_text('{"eos_token_id": 7, "bos_token_id": 1}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_ids == {2, 7, 8, 9}
    assert tokenizer.bos_id == 1


def test_special_tokens_map_speaks_where_tokenizer_config_is_silent(tmp_path):
    folder = copy_embedded(tmp_path, eos_token=None)
    (folder / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, {2})
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_truncation_and_padding_saved_in_tokenizer_json_are_not_applied(tmp_path):
    folder = copy_embedded(tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    document["padding"] = {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": None}
    document["padding"] |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a").tolist() == EMBEDDED.encode("a").tolist()
    assert tokenizer.encode("She was very happy.").tolist() == EMBEDDED.encode("She was very happy.").tolist()


def test_special_tokens_that_are_declared_are_recognised_in_a_text_and_have_no_text(byte_level):
    end = byte_level.vocab_size - 1
    assert byte_level.encode("the<|end|>").tolist()[-1] == end
    assert byte_level.decode([end]) == ""


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("one", "one"),
        ([{"name": "tool_use", "template": "two"}, {"name": "default", "template": "one"}], "one"),
        ([{"name": "tool_use", "template": "two"}], None),
        (None, None),
    ],
)
def test_the_default_chat_template_is_taken(tmp_path, template, expected):
    assert load_tokenizer(copy_embedded(tmp_path, chat_template=template)).chat_template == expected


def test_a_chat_template_file_goes_before_the_one_in_the_config(tmp_path):
    (copy_embedded(tmp_path, chat_template="one") / "chat_template.jinja").write_text("two", encoding="utf-8")
    assert load_tokenizer(tmp_path).chat_template == "two"


def test_a_folder_without_a_tokenizer_says_how_to_get_one(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"version": "1.0", "model": {"type": "no"}}'])
def test_a_broken_tokenizer_json_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path)


@given(st.data())
def test_a_mutated_tokenizer_json_loads_or_is_an_error(tmp_path_factory, data):
    good = (embedded.path() / "tokenizer.json").read_bytes()
    at = data.draw(st.integers(0, len(good) - 1) | st.integers(0, 900))
    bad = good[:at] + data.draw(st.binary(max_size=4)) + good[at + data.draw(st.integers(0, 8)) :]
    folder = tmp_path_factory.mktemp("mutated")
    (folder / "tokenizer.json").write_bytes(bad)
    with contextlib.suppress(RefquantError):
        load_tokenizer(folder).encode("She was happy.")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"bos_token": 1}'),
        ("tokenizer_config.json", b'{"add_bos_token": "yes"}'),
        ("tokenizer_config.json", b'{"chat_template": [1]}'),
        ("special_tokens_map.json", b'{"eos_token": [2]}'),
        ("config.json", b'{"eos_token_id": "2"}'),
        ("config.json", b'{"eos_token_id": %s}' % (b"9" * 5000)),
        ("config.json", b"[" * 100_000),
        ("generation_config.json", b'{"eos_token_id": [1, -2]}'),
        ("generation_config.json", b'{"bos_token_id": true}'),
        ("chat_template.jinja", b"\xff"),
    ],
)
def test_a_broken_file_beside_it_is_an_error_that_names_the_file(tmp_path, name, content):
    (copy_embedded(tmp_path) / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("config", [{"eos_token": "<nowhere>"}, {"add_bos_token": True}])
def test_a_special_token_that_does_not_exist_is_an_error(tmp_path, config):
    with pytest.raises(CheckpointError, match=r"eos_token '<nowhere>'|no file names a BOS token"):
        load_tokenizer(copy_embedded(tmp_path, **config))


def test_special_tokens_in_a_literal_text_are_text(byte_level):
    end = byte_level.encode("<|end|>").tolist()
    assert len(end) == 1
    literal = byte_level.encode_literal("he<|end|>")
    assert byte_level.decode(literal) == "he<|end|>"
    assert not set(end) & set(literal.tolist())
    assert byte_level.encode("<|end|>").tolist() == end  # the one way does not change the other
