"""GGUF models against llama.cpp, which runs them itself, and transformers, whose folders they were made from."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import refquant as rq
from refquant.checkpoints.gguf_values import Value, ValueType, numbers, string, strings, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.conversion.hugging_face import as_gguf
from tests.peers import smollm2
from tests.peers.llama_cpp import tool
from tests.peers.test_transformers import BASE, GPT2, LLAMA3, LONG, distance

pytestmark = pytest.mark.peers

LENGTH, PRETRAINED = 200, {"original_max_position_embeddings": 64}
LIMIT = 2e-5  # of max|Δ logits| / max|logits|, as in test_transformers
MERGES = ["t h", "h e", "i n", "e r", "a n"]
VOCAB = 256 + len(MERGES) + 1
SIZES = BASE | {"vocab_size": VOCAB, "max_position_embeddings": 512}

# name: (configuration class, changes to SIZES)
CASES = {
    "llama": (transformers.LlamaConfig, {}),
    "llama, biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": (transformers.LlamaConfig, {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "llama, linear": (transformers.LlamaConfig, {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "llama, llama3": (transformers.LlamaConfig, {"rope_parameters": {"rope_type": "llama3", **LLAMA3}}),
    "llama, yarn": (transformers.LlamaConfig, {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, **PRETRAINED}}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {"hidden_size": 96}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 24}),
    "gemma2": (transformers.Gemma2Config, {"sliding_window": 40, "query_pre_attn_scalar": 16}),
    "gemma2, low caps": (
        transformers.Gemma2Config,
        {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {"sliding_window": 30, "num_hidden_layers": 7, "query_pre_attn_scalar": 16, "final_logit_softcapping": 9.0},
    ),
    "phi3": (transformers.Phi3Config, {"hidden_size": 96}),
    "phi3, longrope": (
        transformers.Phi3Config,
        {
            "hidden_size": 96,
            **PRETRAINED,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG, **PRETRAINED},
        },
    ),
    "gpt2": (transformers.GPT2Config, GPT2 | {"vocab_size": VOCAB, "n_positions": 512, "n_inner": 192}),
}


def tokenizer() -> dict[str, Value]:
    """Every byte, in GPT-2's spelling, and a few pairs: a vocabulary that llama.cpp and refquant both take."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelt = {byte: chr(byte) for byte in printable}
    spelt |= {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in printable)}
    tokens = [*(spelt[byte] for byte in range(256)), *(merge.replace(" ", "") for merge in MERGES), "<|endoftext|>"]
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string("gpt-2"),
        "tokenizer.ggml.tokens": strings(tokens),
        "tokenizer.ggml.token_type": numbers(ValueType.I32, [1] * (VOCAB - 1) + [3]),
        "tokenizer.ggml.merges": strings(MERGES),
        "tokenizer.ggml.eos_token_id": u32(VOCAB - 1),
    }


@pytest.fixture(scope="module", params=CASES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A model of transformers, and the GGUF of its folder."""
    folder = tmp_path_factory.mktemp("model")
    kind, changes = CASES[request.param]
    torch.manual_seed(len(request.param))
    config = kind(**(changes if kind is transformers.GPT2Config else SIZES | changes))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    for key, tensor in model.named_parameters():
        if "norm" in key or "ln_" in key or key.endswith("bias"):
            torch.nn.init.normal_(tensor, 0.3, 0.3)
    model.save_pretrained(folder)
    converted = as_gguf(folder, "f32")
    assert converted.lost == ()
    sources = [TensorSource(t.name, t.dtype, t.shape, t.numpy) for t in converted.tensors.values()]
    write_gguf(folder / "model.gguf", {**converted.typed_metadata, **tokenizer()}, sources)
    return folder / "model.gguf", model.eval()


def test_logits_are_those_of_transformers(made: tuple[Path, torch.nn.Module]) -> None:
    path, peer = made
    ids = np.random.default_rng(7).integers(0, VOCAB, (2, LENGTH))
    with torch.no_grad():
        theirs = peer(torch.tensor(ids), use_cache=False).logits.numpy()
    model = rq.load_model(path)
    assert distance(model.logits(model.hidden(ids)), theirs) < LIMIT


def llama_perplexity(path: Path, text: Path, window: int, chunks: int) -> float:
    """The perplexity after some chunks; float32 weights and caches, one thread."""
    command = [tool("llama-perplexity"), "-m", path, "-f", text, "-c", window, "--chunks", chunks, "-t", "1"]
    command += ["-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-warmup"]
    for _ in range(5):  # a thread writes its log, and on a busy machine the program may end before the last lines
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        found = re.search(rf"\[{chunks}\]([\d.]+),", done.stdout)
        if found is not None:
            return float(found[1])
    raise RuntimeError(f"no figure in the output of llama-perplexity: {done.stdout!r}")


def test_perplexity_is_that_of_llama_cpp(made: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    """What remains is the order of sums and, for GELU, that llama.cpp takes it from a table of float16."""
    path, _ = made
    text = tmp_path / "text.txt"
    text.write_text(smollm2.wikitext()[:2000], encoding="utf-8")
    model = rq.load_model(path)
    ours = rq.perplexity(model, text.read_text(encoding="utf-8"), method="llama.cpp", window=256, limit=512)
    limit = 5e-4 if "gelu" in model.config.activation else 1e-6
    assert ours.perplexity == pytest.approx(llama_perplexity(path, text, 256, 2), rel=limit)


@pytest.mark.slow
def test_smollm2_as_shipped_has_the_published_perplexity() -> None:
    model = rq.load_model(smollm2.gguf_path())
    assert model.nbytes < 98_362_432
    ids = np.asarray(model.tokenizer.encode(smollm2.wikitext()))
    assert len(ids) == 312_144
    result = rq.perplexity(model, ids[:8192], method="sliding", window=1024, stride=512)
    assert result.scored_tokens == 8191
    assert result.perplexity == pytest.approx(20.0063, abs=0.005)
