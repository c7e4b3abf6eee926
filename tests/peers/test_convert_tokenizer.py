"""The tokenizer metadata of a Hugging Face folder against that of llama.cpp's converter, `--vocab-only`.

The converter runs in a process of its own. Made-up tokenizers have none of the hashes by which it tells pre-tokenizers,
so it is told one; the hashes themselves are tried on a tokenizer that exists.
"""

import ast
import json
import os
import re
import subprocess
import sys

import gguf
import pytest
import sentencepiece

from refquant.conversion.tokenizer_files import TokenizerFolder
from refquant.conversion.tokenizer_metadata import PROBE, known_hashes, recognised_pre_tokenizer, tokenizer_metadata
from refquant.models.gguf_encoders import BYTE_LETTERS
from tests.peers import llama_cpp, smollm2

pytestmark = pytest.mark.peers

# Converts every folder in a folder, in one process: loading its libraries is most of its time.
CONVERTER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
for folder in sorted(Path(sys.argv[2]).iterdir()):
    sys.argv = ["convert", "--vocab-only", "--outfile", str(folder / "vocab.gguf"), str(folder)]
    convert_hf_to_gguf.main()
"""

CONFIGS = {
    "llama": ("LlamaForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen2": ("Qwen2ForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3ForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    "phi3": ("Phi3ForCausalLM", {"num_attention_heads": 2, "num_key_value_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", {"n_head": 2, "n_embd": 16, "n_layer": 1, "n_ctx": 64, "n_positions": 64}),
}


def write(folder, name, document):
    (folder / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def write_config(folder, family, size, **more):
    architecture, shape = CONFIGS[family]
    model_type = {"gemma3": "gemma3_text"}.get(family, family)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 64}
    document = {"architectures": [architecture], "model_type": model_type, **common, **shape, **more}
    if family == "phi3":
        document |= {"original_max_position_embeddings": 64}
    write(folder, "config.json", document | ({} if size is None else {"vocab_size": size}))


def byte_level(special, added=(), merges=None, size=None, **config):
    """A tokenizer.json and tokenizer_config.json of a byte-level tokenizer."""
    merges = merges or [["h", "e"], ["he", "l"], ["Ġ", "t"], ["1", "2"]]
    vocab = [*BYTE_LETTERS, *("".join(pair) for pair in merges)]
    tokens = [*special, *(token for token, _ in added)]
    kinds = [True] * len(special) + [kind for _, kind in added]
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(vocab) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": kind}
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": config.pop("post_processor", None),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
        | {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
        | {"vocab": {token: i for i, token in enumerate(vocab)}, "merges": merges},
    }
    return document, {"tokenizer_class": "PreTrainedTokenizerFast", **config}, len(vocab) + len(tokens)


def template(first=None, last=None, between=None):
    """A post-processor that puts tokens around and between texts."""

    def token(name):
        return [{"SpecialToken": {"id": name, "type_id": 0}}] if name else []

    a, b = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    names = {name for name in (first, last, between) if name}
    return {
        "type": "TemplateProcessing",
        "single": [*token(first), a, *token(last)],
        "pair": [*token(first), a, *token(between), b, *token(last)],
        "special_tokens": {name: {"id": name, "ids": [1], "tokens": [name]} for name in names},
    }


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}"


# Byte-pair tokenizers: the architecture, what tokenizer.json holds, and what tokenizer_config.json says.
BYTE_PAIR = {
    "gpt2": ("gpt2", {"special": ["<|endoftext|>"]}, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}),
    "byte level processor": (
        "gpt2",
        {"special": ["<s>", "</s>"], "post_processor": BYTES},
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "normalized": False, "special": True, **FLAGS}},
    ),
    "plain added tokens": (
        "qwen2",
        {"special": ["<|endoftext|>", "<|im_end|>"], "added": [("<tool>", False), ("<|plain|>", False)]},
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "chat_template": CHAT}
        | {"add_bos_token": False, "add_prefix_space": False},
    ),
    "an end that the vocabulary lacks": (
        "qwen3",
        {"special": ["<e>"], "added": [("▁x y", False), ("é", False)], "post_processor": template(last="<e>")},
        {"eos_token": "<x>", "unk_token": "hel"}
        | {"chat_template": [{"name": "default", "template": CHAT}, {"name": "a-b", "template": "x"}]},
    ),
    "a sequence of processors": (
        "llama",
        {
            "special": ["<|begin|>", "<|end|>"],
            "post_processor": {"type": "Sequence", "processors": [BYTES, template("<|begin|>")]},
        },
        {"bos_token": "<|begin|>", "eos_token": "<|end|>", "add_prefix_space": False, "chat_template": CHAT},
    ),
    "a separator": (
        "llama",
        {"special": ["<s>", "</s>", "<sep>"], "post_processor": template("<s>", between="<sep>")},
        {"cls_token": "<s>", "sep_token": "<sep>", "eos_token": "</s>", "mask_token": "<sep>", "unk_token": "<s>"},
    ),
    "gemma3": (
        "gemma3",
        {"special": ["<bos>", "<eos>"], "added": [("<unused0>", False)]},
        {"bos_token": "<bos>", "add_bos_token": True},
    ),
    "phi4": (
        "phi3",
        {"special": ["<|endoftext|>"]},
        {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>"},
    ),
}
SENTENCEPIECE = ("llama", "qwen2", "gemma2", "gemma3", "phi3")
SIZES = (32016, 49152)  # CodeLlama's and Granite's, which the converter knows them by


def write_byte_pair(folder, family, arguments, extra):
    document, config, size = byte_level(**arguments)
    write(folder, "tokenizer.json", document)
    write(folder, "tokenizer_config.json", config | extra)
    write_config(folder, family, size + 3, bos_token_id=1, eos_token_id=[2, 3])


def write_sentencepiece_model(path):
    """A small SentencePiece byte-pair model with tokens of every type."""
    text = path.parent / "text.txt"
    text.write_text("the cat sat on the mat\nthat hat is the cat's\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(path.with_suffix("")), model_type="bpe", vocab_size=300, byte_fallback=True,
        user_defined_symbols=["<mine>"], control_symbols=["<control>"], pad_id=3, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    text.unlink()
    path.with_suffix(".vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()


def write_sentencepiece(folder, family):
    size = write_sentencepiece_model(folder / "tokenizer.model")
    decoder = {"0": ("<unk>", True), "1": ("<s>", True), str(size): ("<|user|>", False), str(size + 1): ("▁▁x", False)}
    entries = {i: {"content": token, "special": special} for i, (token, special) in decoder.items()}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    flags = {"add_bos_token": True, "add_eos_token": False}
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": entries, "chat_template": CHAT}
    write(folder, "tokenizer_config.json", config | names | flags)
    write(folder, "added_tokens.json", {"<extra>": size + 2, "<beyond>": size + 9})
    write_config(folder, family, size + 5, bos_token_id=1, eos_token_id=2, pad_token_id=size + 7)


def write_size(folder, size):
    write_sentencepiece_model(folder / "tokenizer.model")
    write(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    write_config(folder, "llama", size, bos_token_id=1, eos_token_id=2)


def write_tokenizer_json_alone(folder):
    """A Llama tokenizer as transformers saves it without tokenizer.model."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁a"]
    document, _, _ = byte_level(["<x>"])
    document["model"] |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": [["a", "b"], ["▁", "a"]]}
    document["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    added = [*enumerate(tokens[:3]), (len(tokens), "<|special|>"), (len(tokens) + 1, "<plain>")]
    document["added_tokens"] = [
        {"id": i, "content": token, "special": token != "<plain>", "normalized": False, **FLAGS} for i, token in added
    ]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    document["pre_tokenizer"] = None
    document["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]}
    document["decoder"] = {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    document["post_processor"] = template("<s>")
    write(folder, "tokenizer.json", document)
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "additional_special_tokens": ["<|special|>"],
    }
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    write_config(folder, "llama", len(tokens) + 2)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Every folder, written and converted."""
    root = tmp_path_factory.mktemp("folders")

    def made(name):
        folder = root / name
        folder.mkdir()
        return folder

    for name, arguments in BYTE_PAIR.items():
        write_byte_pair(made(name), *arguments)
    for family in SENTENCEPIECE:
        write_sentencepiece(made(f"sentencepiece {family}"), family)
    for size in SIZES:
        write_size(made(f"size {size}"), size)
    write_tokenizer_json_alone(made("tokenizer.json alone"))
    source = llama_cpp.source()
    environment = os.environ | {"PYTHONPATH": str(source / "gguf-py"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", CONVERTER, str(source), str(root)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return root


def assert_as_converted(folder, family):
    """The same keys in the same order, with the same types and values."""
    fields = gguf.GGUFReader(folder / "vocab.gguf").fields
    expected = {key: field for key, field in fields.items() if key.startswith("tokenizer.")}
    values = tokenizer_metadata(folder, family, pre="gpt-2")
    assert list(values) == list(expected)
    for key, value in values.items():
        assert ([9] if value.is_array else []) + [value.type] == expected[key].types, key
        assert (list(value.value) if value.is_array else value.value) == expected[key].contents(), key


@pytest.mark.parametrize("name", BYTE_PAIR)
def test_byte_pair_folders_give_the_converters_metadata(name, converted):
    assert_as_converted(converted / name, BYTE_PAIR[name][0])


@pytest.mark.parametrize("family", SENTENCEPIECE)
def test_sentencepiece_folders_give_the_converters_metadata(family, converted):
    assert_as_converted(converted / f"sentencepiece {family}", family)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_code_llamas_and_granites_sizes_add_what_the_converter_adds(size, converted):
    assert_as_converted(converted / f"size {size}", "llama")


def test_a_llama_folder_with_tokenizer_json_alone_gives_the_converters_metadata(converted):
    assert_as_converted(converted / "tokenizer.json alone", "llama")


def test_smollm2s_pre_tokenizer_is_recognised_by_its_hash():
    assert recognised_pre_tokenizer(TokenizerFolder(smollm2.folder())) == "smollm"


def test_the_probe_text_and_every_hash_are_the_converters():
    source = (llama_cpp.source() / "conversion" / "base.py").read_text(encoding="utf-8")
    line = next(line for line in source.splitlines() if line.strip().startswith("chktxt = "))
    assert ast.literal_eval(line.split("=", 1)[1].strip()) == PROBE
    pattern = r'if chkhsh == "([0-9a-f]{64})":\s*\n(?:\s*#.*\n)*\s*res = "([^"]+)"'
    assert dict(re.findall(pattern, source)) == known_hashes()
