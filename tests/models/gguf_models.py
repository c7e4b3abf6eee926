"""Small models of every architecture as GGUF files, made from random Hugging Face folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refquant.checkpoints.gguf_values import Value
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.conversion.hugging_face import as_gguf
from tests.models.random_models import CONFIGS, LLAMA, random_model, tensors, write_folder

# Every architecture, with windows, caps and scales as far as its keys can say them.
LOSSLESS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama with biases": LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    "llama, tied": LLAMA | {"tie_word_embeddings": True},
    "mistral": CONFIGS["MistralForCausalLM"] | {"sliding_window": None},
    "qwen2": CONFIGS["Qwen2ForCausalLM"] | {"use_sliding_window": False},
    "qwen3": CONFIGS["Qwen3ForCausalLM"],
    "gemma2": CONFIGS["Gemma2ForCausalLM"] | {"query_pre_attn_scalar": 8},
    "gemma3": CONFIGS["Gemma3ForCausalLM"]
    | {"query_pre_attn_scalar": 8, "sliding_window_pattern": 6, "num_hidden_layers": 7, "rope_local_base_freq": 500.0}
    | {"final_logit_softcapping": 2.0},
    "gemma2 of 27B's depth": CONFIGS["Gemma2ForCausalLM"] | {"num_hidden_layers": 46, "query_pre_attn_scalar": 6},
    "phi3": CONFIGS["Phi3ForCausalLM"] | {"hidden_size": 32},
    "gpt2": CONFIGS["GPT2LMHeadModel"],
}

Stored = tuple[dict[str, Value], dict[str, np.ndarray]]


def folder_of(raw: dict[str, Any], folder: Path) -> Path:
    """A Hugging Face folder with random weights."""
    return write_folder(folder, raw, tensors(random_model(raw)))


def stored(folder: Path) -> Stored:
    """The folder's metadata and float32 tensors in GGUF's terms, to be changed before they are written."""
    converted = as_gguf(folder, "f32")
    return dict(converted.typed_metadata), {name: t.numpy() for name, t in converted.tensors.items()}


def write(path: Path, metadata: Mapping[str, Value], arrays: Mapping[str, np.ndarray]) -> Path:
    """A GGUF file of float32 tensors."""
    sources = [TensorSource(name, "F32", array.shape, lambda array=array: array) for name, array in arrays.items()]
    write_gguf(path, metadata, sources)
    return path
