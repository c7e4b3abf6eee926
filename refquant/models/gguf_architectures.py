"""Architectures as GGUF files have them: the same blocks under GGUF's names, and what llama.cpp assumes of absent keys.

GGUF's norms hold Gemma's offset already, linear weights are all (out, in), and nothing stands before a name. The rest
of an architecture is its Hugging Face literal's. Source: llama.cpp, src/llama-arch.cpp and src/models/*.cpp.
"""

import dataclasses
from collections.abc import Mapping

from refquant.errors import ModelError
from refquant.models.architectures import (
    GEMMA2,
    GEMMA3,
    GPT2,
    LLAMA,
    MISTRAL,
    PHI3,
    QWEN2,
    QWEN3,
    Architecture,
    not_supported,
)

# GGUF's name of every role.
BLOCK = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "qkv": "attn_qkv",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "o": "attn_output",
    "attention_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "gate_up": "ffn_up",
    "down": "ffn_down",
    "mlp_post_norm": "post_ffw_norm",
}
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _stored(
    architecture: Architecture,
    defaults: Mapping[str, object] | None = None,
    ignored: tuple[str, ...] = (),
    neighbouring_pairs: bool = False,
) -> Architecture:
    """The architecture under GGUF's names.

    Args:
        architecture: the literal of its Hugging Face checkpoints.
        defaults: what absent keys mean, by the key's name without the architecture's.
        ignored: tensors that are read with the configuration, not as weights.
        neighbouring_pairs: llama.cpp rotates neighbouring coordinates, and its converter reorders q and k to suit.
    """
    return dataclasses.replace(
        architecture,
        block={role: BLOCK[role] for role in architecture.block},
        prefix="",
        blocks="blk.{}.",
        embedding="token_embd",
        positions="position_embd" if architecture.positions else None,
        final_norm="output_norm",
        head="output",
        ignored=ignored,
        defaults={"activation": architecture.defaults.get("activation", "silu"), **(defaults or {})},
        norm_offset=0.0,
        stored_in_out=False,
        neighbouring_pairs=neighbouring_pairs,
    )


# A window slides in every layer whose index, modulo the pattern, is below the pattern − 1; in all where it is 0.
GGUF_ARCHITECTURES: dict[str, Architecture] = {
    "llama": _stored(LLAMA, ignored=(ROPE_FREQS, ROPE_LONG, ROPE_SHORT), neighbouring_pairs=True),
    "qwen2": _stored(QWEN2),
    "qwen3": _stored(QWEN3),
    "gemma2": _stored(
        GEMMA2,
        defaults={
            "attention.sliding_window": 4096,
            "attention.sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": _stored(
        GEMMA3,
        defaults={"attention.sliding_window_pattern": 6, "rope.freq_base_swa": 10_000.0},
    ),
    "phi3": _stored(
        PHI3,
        defaults={"attention.sliding_window_pattern": 0},
        ignored=(ROPE_LONG, ROPE_SHORT),
    ),
    "gpt2": _stored(GPT2),
}
# What GGUF calls the architecture of a Hugging Face folder. Mistral is Llama there, its window left out.
GGUF_NAMES: dict[str, str] = {found.name: name for name, found in GGUF_ARCHITECTURES.items()} | {MISTRAL.name: "llama"}


def find_gguf_architecture(name: object) -> Architecture:
    """The architecture that `general.architecture` names.

    Raises:
        ModelError: none is named, or there is no such; the message offers near names and lists what is supported.
    """
    if name is None:
        raise ModelError("general.architecture is missing: the file does not say what its tensors are")
    if not isinstance(name, str) or name not in GGUF_ARCHITECTURES:
        raise not_supported("architecture", name, GGUF_ARCHITECTURES)
    return GGUF_ARCHITECTURES[name]


def with_projections(architecture: Architecture, first_block: frozenset[str]) -> Architecture:
    """The architecture with q, k and v fused or apart, whichever a file has; llama.cpp takes both of every one.

    Args:
        architecture: one of GGUF_ARCHITECTURES.
        first_block: the names of the first block's tensors, without what stands before (`attn_q.weight`, …).
    """
    apart = {"q": BLOCK["q"], "k": BLOCK["k"], "v": BLOCK["v"]}
    fused = {"qkv": BLOCK["qkv"]}
    block = architecture.block
    has_apart, has_fused = "attn_q.weight" in first_block, "attn_qkv.weight" in first_block
    if "qkv" in block and has_apart and not has_fused:
        old, new = fused, apart
    elif "q" in block and has_fused and not has_apart:
        old, new = apart, fused
    else:
        return architecture
    at = list(block).index(next(iter(old)))
    kept = [item for item in block.items() if item[0] not in old]
    return dataclasses.replace(architecture, block=dict([*kept[:at], *new.items(), *kept[at:]]))
