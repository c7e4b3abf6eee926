import contextlib
import json
import struct

import pytest

from refquant.conversion.sentencepiece_metadata import looks_special
from refquant.conversion.sentencepiece_model import read_pieces
from refquant.conversion.special_vocab import special_values
from refquant.conversion.tokenizer_files import TokenizerFolder
from refquant.conversion.tokenizer_metadata import known_hashes, tokenizer_metadata
from refquant.errors import CheckpointError, ModelError, UnknownNameError
from refquant.models.gguf_encoders import BYTE_LETTERS
from refquant.models.gguf_tokenizer import from_metadata
from refquant.models.gguf_vocab import TokenType
from refquant.models.pretokenizers import PRE_TOKENIZERS
from refquant.models.tokenizer import load_tokenizer


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def piece(text, score=0.0, kind=None):
    body = b"\x0a" + varint(len(text.encode())) + text.encode() + b"\x15" + struct.pack("<f", score)
    body += b"" if kind is None else b"\x18" + varint(kind)
    return b"\x0a" + varint(len(body)) + body


def model(*pieces):
    """A SentencePiece model; before its pieces a string, a number and a double that are to be skipped."""
    return b"\x12\x03abc" + b"\x20\x96\x01" + b"\x31" + bytes(8) + b"".join(pieces)


PIECES = [
    ("<unk>", 0, 2),
    ("<s>", 0, 3),
    ("</s>", 0, 3),
    ("<0x0A>", 0, 6),
    ("▁a", -1.5, None),
    ("u", -2, 4),
    ("x", 0, 5),
]


def write(folder, **documents):
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return folder


def byte_level(folder, **config):
    vocab = [*BYTE_LETTERS, "he"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document = {
        "version": "1.0",
        "added_tokens": [{"id": 257, "content": "<|end|>", **flags}],
        "normalizer": None,
        "pre_tokenizer": plain,
        "post_processor": None,
        "decoder": plain,
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(vocab)}, "merges": [["h", "e"]]},
    }
    return write(folder, tokenizer=document, tokenizer_config={"eos_token": "<|end|>", **config})


def plain(values):
    return {key: value.value for key, value in values.items()}


def test_pieces_of_a_sentencepiece_model_have_text_score_and_type(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model(*(piece(*fields) for fields in PIECES)))
    found = read_pieces(tmp_path / "tokenizer.model")
    assert [found_piece.text for found_piece in found] == [text for text, _, _ in PIECES]
    assert [found_piece.score for found_piece in found] == [score for _, score, _ in PIECES]
    kinds = ["UNKNOWN", "CONTROL", "CONTROL", "BYTE", "NORMAL", "NORMAL", "UNUSED"]
    assert [found_piece.type for found_piece in found] == [TokenType[kind] for kind in kinds]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "no pieces"),
        (b"\x0a\x7fabc", "cut short"),
        (b"\x0a", "does not end"),
        (b"\x80" * 20, "does not end"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x08\x01", "a piece that is a number"),
        (b"\x0a\x02\x08\x01", "wrong kind"),
        (b"\x0a\x03\x0a\x01\xff", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_sentencepiece_model_is_refused(raw, problem, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"tokenizer.model: .*{problem}"):
        read_pieces(tmp_path / "tokenizer.model")


def test_every_cut_of_a_sentencepiece_model_is_read_or_refused(tmp_path):
    raw = model(*(piece(*fields) for fields in PIECES))
    for end in range(len(raw)):
        (tmp_path / "tokenizer.model").write_bytes(raw[:end])
        with contextlib.suppress(CheckpointError):
            assert len(read_pieces(tmp_path / "tokenizer.model")) < len(PIECES)


def test_a_sentencepiece_folder_is_padded_to_the_models_vocabulary_and_takes_added_tokens(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model(*(piece(*fields) for fields in PIECES)))
    decoder = {"7": {"content": "<|im|>", "special": False}, "8": {"content": "▁▁x"}, "99": {"content": "beyond"}}
    write(tmp_path, config={"vocab_size": 10, "bos_token_id": 1}, tokenizer_config={"added_tokens_decoder": decoder})
    values = plain(tokenizer_metadata(tmp_path, "gemma2"))
    assert values["tokenizer.ggml.tokens"][7:] == ["<|im|>", "  x", "[PAD9]"]
    assert values["tokenizer.ggml.token_type"].tolist() == [2, 3, 3, 6, 1, 1, 5, 3, 4, 5]
    assert values["tokenizer.ggml.scores"].tolist()[4:] == [-1.5, -2, 0, -1000, -1000, -10000]
    assert values["tokenizer.ggml.bos_token_id"] == 1
    assert values["tokenizer.ggml.add_space_prefix"] is False


def test_a_byte_level_folder_and_its_metadata_are_the_same_tokenizer(tmp_path):
    byte_level(tmp_path, add_bos_token=False)
    write(tmp_path, config={"vocab_size": 259})
    values = plain(tokenizer_metadata(tmp_path, "gpt2", pre="gpt-2"))
    assert values["tokenizer.ggml.tokens"][-2:] == ["<|end|>", "[PAD258]"]
    ours, library = from_metadata(values), load_tokenizer(tmp_path)
    for text in ("he said<|end|> héllo\n\n 123", ""):
        assert ours.encode(text).tolist() == library.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == library.decode(library.encode(text))
    assert (ours.eos_ids, ours.adds_bos) == (library.eos_ids, library.adds_bos)


def test_a_byte_level_folder_of_no_known_pre_tokenizer_is_an_error_with_its_hash(tmp_path):
    write(byte_level(tmp_path), config={"vocab_size": 258})
    with pytest.raises(ModelError, match=r"tokenizer.json: no pre-tokenizer .* hash to [0-9a-f]{64}"):
        tokenizer_metadata(tmp_path, "gpt2")


def test_every_pre_tokenizer_that_a_hash_names_is_known_but_those_of_embedding_models():
    embedding = {"bert-bge-large", "jina-v2-en"}  # WordPiece
    assert set(known_hashes().values()) - set(PRE_TOKENIZERS) == embedding


def test_tokens_beyond_the_models_vocabulary_are_an_error(tmp_path):
    write(byte_level(tmp_path), config={"vocab_size": 100})
    with pytest.raises(CheckpointError, match=r"'<\|end\|>' has id 257; config.json's vocab_size is 100"):
        tokenizer_metadata(tmp_path, "gpt2", pre="gpt-2")


@pytest.mark.parametrize("token", ["<pad>", "<|x|>", "<unused7>", "<｜x｜>"])
def test_some_tokens_look_special(token):
    assert looks_special(token)
    assert not looks_special(f"{token}.")


def test_what_a_template_puts_first_and_last_says_what_is_added(tmp_path):
    def token(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    step = {"type": "TemplateProcessing", "single": [token("<s>"), text, token("<e>")], "pair": []}
    added = [{"id": 5, "content": "<s>"}, {"id": 6, "content": "<e>"}, {"id": 7, "content": "<t>"}]
    write(tmp_path, tokenizer={"post_processor": step, "added_tokens": added}, tokenizer_config={"eos_token": "<t>"})
    values = plain(special_values(TokenizerFolder(tmp_path), None))
    assert values == {
        "tokenizer.ggml.bos_token_id": 5,
        "tokenizer.ggml.eos_token_id": 6,
        "tokenizer.ggml.eot_token_id": 7,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }


def test_named_chat_templates_have_keys_of_their_own(tmp_path):
    templates = [{"name": "default", "template": "d"}, {"name": "tool-use", "template": "t"}]
    write(tmp_path, tokenizer_config={"chat_template": templates})
    values = plain(special_values(TokenizerFolder(tmp_path), None))
    assert values == {
        "tokenizer.chat_template.tool_use": "t",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template": "d",
    }


def test_files_that_are_missing_or_broken_are_errors_that_name_them(tmp_path):
    with pytest.raises(UnknownNameError, match="unknown architecture 'bloom'"):
        tokenizer_metadata(tmp_path, "bloom")
    with pytest.raises(ModelError, match=r"tokenizer.model: not there"):
        tokenizer_metadata(tmp_path, "gemma2")
    with pytest.raises(ModelError, match=r"no tokenizer.json and no tokenizer.model"):
        tokenizer_metadata(tmp_path, "gpt2")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer.json: not "):
        tokenizer_metadata(tmp_path, "gpt2")
    write(tmp_path, config={"vocab_size": "many"})
    with pytest.raises(CheckpointError, match=r"config.json: vocab_size is 'many'"):
        tokenizer_metadata(tmp_path, "gpt2")


@pytest.mark.parametrize("value", [{"bos_token_id": -1}])
def test_a_special_id_below_zero_is_an_error(value, tmp_path):
    write(tmp_path, config=value)
    with pytest.raises(CheckpointError, match="bos_token_id is -1"):
        special_values(TokenizerFolder(tmp_path), None)


@pytest.mark.parametrize(
    "documents",
    [
        {"tokenizer": {"post_processor": [1]}},
        {"tokenizer": {"post_processor": {"processors": 3}}},
        {"tokenizer": {"model": []}},
        {"tokenizer": {"added_tokens": [{"id": "x"}]}},
        {"tokenizer_config": {"chat_template": [3]}},
        {"tokenizer_config": {"added_tokens_decoder": {"x": {}}}},
        {"tokenizer_config": {"additional_special_tokens": 3}},
        {"config": {"text_config": [1], "vocab_size": 9}},
    ],
)
def test_json_of_another_layout_is_refused_or_read(documents, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(model(*(piece(*fields) for fields in PIECES)))
    write(tmp_path, **documents)
    for family in ("llama", "phi3"):
        with contextlib.suppress(CheckpointError):
            tokenizer_metadata(tmp_path, family)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises((CheckpointError, ModelError)):
        tokenizer_metadata(tmp_path, "llama")
