"""Architectures as data: which tensors a model has, what they are called, and the few facts in which models differ.

All of them are the same decoder (forward.py). A role that stands in `block` is part of the architecture's block: an
entry `q_norm` gives it query norms, `qkv` a fused projection, `attention_post_norm` a norm after attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from refquant.errors import ModelError, UnknownNameError, unknown_name

ATTENTION_INPUTS = ("q", "k", "v")
ATTENTION = ("q", "k", "v", "o")
MLP = ("gate", "up", "down")
FULL, SLIDING = "full_attention", "sliding_attention"  # what config.json calls a layer's attention

WindowRule = Literal["never", "always", "even layers", "all but every nth layer", "from max_window_layers"]

_LLAMA_BLOCK = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_HEAD_NORMS = {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
_GEMMA_BLOCK = _LLAMA_BLOCK | {
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_PHI3_BLOCK = {
    "attention_norm": "input_layernorm",
    "qkv": "self_attn.qkv_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate_up": "mlp.gate_up_proj",
    "down": "mlp.down_proj",
}
_GPT2_BLOCK = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "o": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "norm_epsilon": "layer_norm_epsilon",
    "activation": "activation_function",
}


@dataclass(frozen=True)
class Architecture:
    """How one family of models differs from Llama.

    Attributes:
        name: its name in `architectures` of config.json.
        model_type: its name in `model_type`.
        block: the tensors of a block, by role; `.weight` and `.bias` are appended.
        biased: roles that always have a bias.
        bias_options: config keys that give a bias to further roles.
        prefix: what stands before every name but the head's; a checkpoint of the bare model leaves it out.
        blocks: what stands before a block's names, with the layer's index.
        embedding: the token embedding.
        positions: the learned position embedding, or None for rotary positions.
        final_norm: the norm before the head.
        head: the output matrix, which never has the prefix.
        ignored: endings of names that stored buffers have, which the forward pass does not need.
        keys: config keys that differ from Llama's.
        defaults: what a config that leaves a key out means.
        norm: "rms", or "layer" with mean and bias.
        norm_offset: added to every norm's weight.
        stored_in_out: linear weights are stored (in, out) and presented transposed.
        neighbouring_pairs: each head's rows of q and k are stored with the two of a rotated pair side by side, and
            presented with all the pairs' first rows before their second.
        windows: which layers slide a window when the config does not list `layer_types`.
        lists_layer_types: the config may name every layer's attention in `layer_types`.
        scales_embedding: the embedding is multiplied by the square root of the hidden size.
        attention_soft_cap: attention scores may be capped (`attn_logit_softcapping`).
        final_soft_cap: logits may be capped (`final_logit_softcapping`).
        local_rope: sliding layers have rotary parameters of their own.
        partial_rotary: `partial_rotary_factor` may leave the last coordinates of a head as they are.
    """

    name: str
    model_type: str
    block: Mapping[str, str] = field(default_factory=lambda: _LLAMA_BLOCK)
    biased: tuple[str, ...] = ()
    bias_options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    prefix: str = "model."
    blocks: str = "layers.{}."
    embedding: str = "embed_tokens"
    positions: str | None = None
    final_norm: str = "norm"
    head: str = "lm_head"
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    stored_in_out: bool = False
    neighbouring_pairs: bool = False
    windows: WindowRule = "never"
    lists_layer_types: bool = False
    scales_embedding: bool = False
    attention_soft_cap: bool = False
    final_soft_cap: bool = False
    local_rope: bool = False
    partial_rotary: bool = False


LLAMA = Architecture(
    name="LlamaForCausalLM",
    model_type="llama",
    bias_options={"attention_bias": ATTENTION, "mlp_bias": MLP},
)
MISTRAL = Architecture(
    name="MistralForCausalLM",
    model_type="mistral",
    windows="always",
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
)
QWEN2 = Architecture(
    name="Qwen2ForCausalLM",
    model_type="qwen2",
    biased=ATTENTION_INPUTS,
    windows="from max_window_layers",
    lists_layer_types=True,
    defaults={"sliding_window": 4096, "max_window_layers": 28, "use_sliding_window": False},
)
QWEN3 = Architecture(
    name="Qwen3ForCausalLM",
    model_type="qwen3",
    block=_LLAMA_BLOCK | _HEAD_NORMS,
    bias_options={"attention_bias": ATTENTION},
    windows="from max_window_layers",
    lists_layer_types=True,
    defaults={"head_dim": 128, "sliding_window": 4096, "max_window_layers": 28, "use_sliding_window": False},
)
GEMMA2 = Architecture(
    name="Gemma2ForCausalLM",
    model_type="gemma2",
    block=_GEMMA_BLOCK,
    bias_options={"attention_bias": ATTENTION},
    norm_offset=1.0,
    windows="even layers",
    lists_layer_types=True,
    scales_embedding=True,
    attention_soft_cap=True,
    final_soft_cap=True,
    keys={"activation": "hidden_activation"},
    defaults={
        "head_dim": 256,
        "activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
)
GEMMA3 = Architecture(
    name="Gemma3ForCausalLM",
    model_type="gemma3_text",
    block=_GEMMA_BLOCK | _HEAD_NORMS,
    bias_options={"attention_bias": ATTENTION},
    norm_offset=1.0,
    windows="all but every nth layer",
    lists_layer_types=True,
    scales_embedding=True,
    final_soft_cap=True,
    local_rope=True,
    keys={"activation": "hidden_activation"},
    defaults={
        "head_dim": 256,
        "activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
    },
)
PHI3 = Architecture(
    name="Phi3ForCausalLM",
    model_type="phi3",
    block=_PHI3_BLOCK,
    windows="always",
    partial_rotary=True,
    defaults={"norm_epsilon": 1e-5, "original_max_position_embeddings": 4096},
)
GPT2 = Architecture(
    name="GPT2LMHeadModel",
    model_type="gpt2",
    block=_GPT2_BLOCK,
    biased=tuple(_GPT2_BLOCK),
    prefix="transformer.",
    blocks="h.{}.",
    embedding="wte",
    positions="wpe",
    final_norm="ln_f",
    ignored=("attn.bias", "attn.masked_bias"),
    norm="layer",
    stored_in_out=True,
    keys=_GPT2_KEYS,
    defaults={"activation": "gelu_new", "norm_epsilon": 1e-5, "tie_word_embeddings": True},
)

ARCHITECTURES = {a.name: a for a in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, GPT2)}


def find_architecture(name: str) -> Architecture:
    """The architecture of this name or model type.

    Raises:
        ModelError: there is none; the message offers near names and lists what is supported.
    """
    by_type = {a.model_type: a for a in ARCHITECTURES.values()}
    found = ARCHITECTURES.get(name) or by_type.get(name)
    if found is None:
        raise not_supported("architecture", name, ARCHITECTURES if name[:1].isupper() else by_type)
    return found


def not_supported(kind: str, given: object, known: Mapping[str, object]) -> ModelError:
    """The error for a value of the configuration that the forward pass does not have: near names, then all of them."""
    near: UnknownNameError = unknown_name(kind, str(given), known)
    supported = "" if "known:" in str(near) else f" supported: {', '.join(sorted(known))}"
    return ModelError(f"{near}{supported}")
