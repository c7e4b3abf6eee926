import hashlib
import importlib.util
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from refquant.models import embedded

SCRIPT = Path(__file__).parents[1] / "tools" / "convert_llama2c.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_llama2c", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pairs(rows, heads):
    """Rows of q or k from halves (i, i + d/2) back to neighbours (2i, 2i + 1) in every head."""
    order = np.arange(rows.shape[0]).reshape(heads, 2, -1).transpose(0, 2, 1).ravel()
    return rows[order]


def llama2c_checkpoint():
    """stories260K.bin from the shipped folder, but for the rotary tables that run.c skips."""
    tensors = load_file(embedded.path() / "model.safetensors")
    order = [tensors["model.embed_tokens.weight"]]
    for name, heads in (
        ("input_layernorm", 0),
        ("self_attn.q_proj", 8),
        ("self_attn.k_proj", 4),
        ("self_attn.v_proj", 0),
        ("self_attn.o_proj", 0),
        ("post_attention_layernorm", 0),
        ("mlp.gate_proj", 0),
        ("mlp.down_proj", 0),
        ("mlp.up_proj", 0),
    ):
        arrays = [tensors[f"model.layers.{i}.{name}.weight"] for i in range(5)]
        order += [pairs(a, heads) for a in arrays] if heads else arrays
    order += [tensors["model.norm.weight"], np.zeros(512 * 8, np.float32)]
    return struct.pack("<7i", 64, 172, 5, 8, 4, 512, 512) + b"".join(a.tobytes() for a in order)


def llama2c_vocabulary():
    """tok512.bin from the shipped tokenizer.json."""
    model = json.loads((embedded.path() / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    texts = ["<unk>", "\n<s>\n", "\n</s>\n", *list(model["vocab"])[3:]]
    data = struct.pack("<i", max(len(text.encode()) for text in texts))
    for i, text in enumerate(texts):
        score = -float(i - 259) if i >= 259 else 0.0
        data += struct.pack("<fi", score, len(text.encode())) + text.encode()
    return data


def test_the_vocabulary_file_can_be_made_again_from_the_shipped_tokenizer(script):
    assert hashlib.sha256(llama2c_vocabulary()).hexdigest() == script.SOURCES["tok512.bin"]


def test_the_conversion_gives_the_shipped_files_byte_for_byte(script, tmp_path):
    script.convert(llama2c_checkpoint(), llama2c_vocabulary(), tmp_path)
    shipped = sorted(embedded.path().iterdir())
    assert [p.name for p in shipped] == sorted(p.name for p in tmp_path.iterdir())
    for path in shipped:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_a_checkpoint_of_another_length_than_its_header_says_is_refused(script):
    with pytest.raises(SystemExit, match="its header asks for"):
        script.read_checkpoint(llama2c_checkpoint()[:-4])


def test_another_source_file_is_refused(script, tmp_path):
    (tmp_path / "tok512.bin").write_bytes(b"other")
    with pytest.raises(SystemExit, match="SHA-256"):
        script.source(tmp_path / "tok512.bin")


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["aa", "aaa", "a"], "overlap"),  # aa·a and a·aa both stand in "aaaa"
        (["bcx", "ab", "bc", "abc", "a", "b", "c", "x"], None),
        (["abca", "ab", "bc", "abc", "a", "b", "c"], "order matters"),  # a fresh abc takes the a of the next one
        (["abcx", "xabc", "ab", "bc", "abc", "a", "b", "c", "x"], "order matters"),  # two abc compete for an x
    ],
)
def test_a_vocabulary_whose_ties_matter_is_refused(script, texts, reason):
    pieces = [script.Piece("", 0.0)] * 259 + [script.Piece(text, -float(i)) for i, text in enumerate(texts)]
    if reason is None:
        script.check_ties(pieces)
    else:
        with pytest.raises(SystemExit, match=reason):
            script.check_ties(pieces)
