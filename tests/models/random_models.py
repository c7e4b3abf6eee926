"""Small models of every architecture with random weights, in memory and as folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from refquant.models.architectures import ARCHITECTURES
from refquant.models.config import parse_config
from refquant.models.model import Model
from refquant.models.weights import Dense, Names

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 200,
}
_CHANGES: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"sliding_window": 9},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "Gemma2ForCausalLM": {"sliding_window": 9, "query_pre_attn_scalar": 10, "attn_logit_softcapping": 2.0},
    "Gemma3ForCausalLM": {"sliding_window": 9, "sliding_window_pattern": 2},
    "Phi3ForCausalLM": {"sliding_window": 9, "partial_rotary_factor": 0.5},
}
CONFIGS = {
    name: GPT2 if name == "GPT2LMHeadModel" else LLAMA | {"architectures": [name]} | _CHANGES.get(name, {})
    for name in ARCHITECTURES
}


def random_model(raw: dict[str, Any], seed: int = 0) -> Model:
    """A model with this configuration, its weights drawn wide enough that attention is far from uniform."""
    config = parse_config(raw)
    architecture = ARCHITECTURES[config.architecture]
    embedding = f"{architecture.prefix}{architecture.embedding}.weight"
    head = embedding if config.tied else f"{architecture.head}.weight"
    names = Names(architecture, config, architecture.prefix, head)
    rng = np.random.default_rng(seed)
    weights = {
        name: Dense(rng.normal(1.0 if len(shape) == 1 else 0.0, 0.3, shape).astype(np.float32))
        for name, shape in names.shapes().items()
    }
    return Model(Path(), config, None, weights, names)


def random_ids(batch: int, tokens: int, vocab_size: int = 50) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocab_size, (batch, tokens))


def tensors(model: Model) -> dict[str, np.ndarray]:
    """The model's arrays as its checkpoint would store them."""
    stored = {name: weight.dequantize() for name, weight in model.weights.items()}
    if model.names.architecture.stored_in_out:
        stored |= {name: stored[name].T for name in model.linear_names}
    return {name: np.ascontiguousarray(array) for name, array in stored.items()}


def write_folder(folder: Path, raw: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(arrays, folder / "model.safetensors")
    return folder
