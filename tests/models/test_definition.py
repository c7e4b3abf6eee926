"""The forward pass against a second one: float64, a token at a time, written from spec/forward.md.

It reads config.json and the stored tensors itself, and shares no code or table with refquant.
"""

import math

import numpy as np
import pytest

from tests.models.random_models import CONFIGS, random_ids, random_model, tensors

LENGTH = 40


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def rms(x, weight, eps, offset=0.0):
    return x / np.sqrt(np.mean(x * x) + eps) * (weight + offset)


def gelu(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x):
    return x / (1 + np.exp(-x))


def turned(x, position, theta, dims):
    out, half = x.copy(), dims // 2
    for i in range(half):
        angle = float(np.float32(position) * np.float32(theta ** (-2 * i / dims)))
        a, b = x[i], x[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def rotary_decoder(raw, t, ids):
    """Llama and its kin, with the differences written out by name."""
    name = raw["architectures"][0].removesuffix("ForCausalLM")
    gemma, d = name.startswith("Gemma"), raw["head_dim"]
    n_heads, kv_heads, offset = raw["num_attention_heads"], raw["num_key_value_heads"], 1.0 if gemma else 0.0
    eps, act = (1e-5 if name == "Phi3" else 1e-6), (gelu if gemma else silu)
    scale = {"Gemma2": 10, "Gemma3": 256}.get(name, d) ** -0.5
    dims = d // 2 if name == "Phi3" else d
    xs = t["model.embed_tokens.weight"][ids] * (float(np.float32(math.sqrt(24))) if gemma else 1.0)
    for layer in range(raw["num_hidden_layers"]):
        slides = {
            "Mistral": True,
            "Phi3": True,
            "Qwen2": layer >= 1,
            "Gemma2": layer % 2 == 0,
            "Gemma3": layer % 2 == 0,
        }
        window = 9 if slides.get(name) else LENGTH
        theta = (10_000.0 if layer % 2 == 0 else 1_000_000.0) if name == "Gemma3" else 10_000.0

        def tensor(stem, layer=layer):
            return t[f"model.layers.{layer}.{stem}"]

        def linear(stem, x):
            y = tensor(f"{stem}.weight") @ x
            return y + tensor(f"{stem}.bias") if name == "Qwen2" and stem[-6:-5] in "qkv" else y

        keys, values = [], []
        for p, x in enumerate(xs):
            u = rms(x, tensor("input_layernorm.weight"), eps, offset)
            if name == "Phi3":
                q, k, v = np.split(linear("self_attn.qkv_proj", u), [n_heads * d, (n_heads + kv_heads) * d])
            else:
                q, k, v = (linear(f"self_attn.{c}_proj", u) for c in "qkv")
            q, k, v = q.reshape(n_heads, d), k.reshape(kv_heads, d), v.reshape(kv_heads, d)
            if name in ("Qwen3", "Gemma3"):
                q = np.array([rms(r, tensor("self_attn.q_norm.weight"), eps, offset) for r in q])
                k = np.array([rms(r, tensor("self_attn.k_norm.weight"), eps, offset) for r in k])
            keys.append([turned(r, p, theta, dims) for r in k])
            values.append(v)
            heads = []
            for h in range(n_heads):
                kv, seen = h // (n_heads // kv_heads), range(max(0, p - window + 1), p + 1)
                scores = np.array([turned(q[h], p, theta, dims) @ keys[j][kv] * scale for j in seen])
                if name == "Gemma2":
                    scores = 2.0 * np.tanh(scores / 2.0)
                heads.append(softmax(scores) @ np.array([values[j][kv] for j in seen]))
            a = linear("self_attn.o_proj", np.concatenate(heads))
            if gemma:
                x = x + rms(a, tensor("post_attention_layernorm.weight"), eps, offset)
                u = rms(x, tensor("pre_feedforward_layernorm.weight"), eps, offset)
            else:
                x = x + a
                u = rms(x, tensor("post_attention_layernorm.weight"), eps)
            if name == "Phi3":
                gate, up = np.split(linear("mlp.gate_up_proj", u), 2)
            else:
                gate, up = linear("mlp.gate_proj", u), linear("mlp.up_proj", u)
            m = linear("mlp.down_proj", act(gate) * up)
            xs[p] = x + (rms(m, tensor("post_feedforward_layernorm.weight"), eps, offset) if gemma else m)
    head = t.get("lm_head.weight", t["model.embed_tokens.weight"])
    logits = np.array([head @ rms(x, t["model.norm.weight"], eps, offset) for x in xs])
    return 30.0 * np.tanh(logits / 30.0) if name == "Gemma2" else logits


def gpt2(raw, t, ids):
    t = {name.removeprefix("transformer."): array for name, array in t.items()}
    n, n_heads = raw["n_embd"], raw["n_head"]

    def norm(stem, x):
        y = x - x.mean()
        return y / math.sqrt(np.mean(y * y) + 1e-5) * t[f"{stem}.weight"] + t[f"{stem}.bias"]

    def linear(stem, x):
        return x @ t[f"{stem}.weight"] + t[f"{stem}.bias"]

    xs = t["wte.weight"][ids] + t["wpe.weight"][: len(ids)]
    for layer in range(raw["n_layer"]):
        keys, values = [], []
        for p, x in enumerate(xs):
            q, k, v = linear(f"h.{layer}.attn.c_attn", norm(f"h.{layer}.ln_1", x)).reshape(3, n_heads, n // n_heads)
            keys.append(k)
            values.append(v)
            heads = [
                softmax(np.array([q[h] @ key[h] for key in keys]) / math.sqrt(n // n_heads))
                @ np.array([value[h] for value in values])
                for h in range(n_heads)
            ]
            x = x + linear(f"h.{layer}.attn.c_proj", np.concatenate(heads))
            m = gelu(linear(f"h.{layer}.mlp.c_fc", norm(f"h.{layer}.ln_2", x)))
            xs[p] = x + linear(f"h.{layer}.mlp.c_proj", m)
    return np.array([t["wte.weight"] @ norm("ln_f", x) for x in xs])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_the_page_in_float64(name):
    raw = CONFIGS[name]
    model, ids = random_model(raw), random_ids(1, LENGTH)
    stored = {n: array.astype(np.float64) for n, array in tensors(model).items()}
    expected = (gpt2 if name == "GPT2LMHeadModel" else rotary_decoder)(raw, stored, ids[0])
    found = model.logits(model.hidden(ids))[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
