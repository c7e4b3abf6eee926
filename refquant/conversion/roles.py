"""What a tensor is for, as its name says, and which tensors are never quantized (spec/file_types.md, section 2)."""

from typing import Final

from refquant.arrays import Shape

OUTPUT: Final = "output"
EMBEDDING: Final = "token_embd"

_BY_NAME: Final = {
    "output.weight": OUTPUT,
    "token_embd.weight": EMBEDDING,
    "per_layer_token_embd.weight": EMBEDDING,
}

# The first part that the name contains decides.
_BY_PART: Final = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)

# Source: tensor_allows_quantization in llama.cpp's src/llama-quant.cpp: norms, routers, tables of positions and types,
# small convolutions and low-rank factors, multimodal parts.
_KEPT_NAMES: Final = ("position_embd.weight", "token_types.weight")
_KEPT_PARTS: Final = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "time_mix_first.weight",
    "time_mix_w0.weight",
    "time_mix_w1.weight",
    "time_mix_w2.weight",
    "time_mix_v0.weight",
    "time_mix_v1.weight",
    "time_mix_v2.weight",
    "time_mix_a0.weight",
    "time_mix_a1.weight",
    "time_mix_a2.weight",
    "time_mix_g1.weight",
    "time_mix_g2.weight",
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
_KEPT_PARTS_OF: Final = {
    "glm5-next": (
        "hc_",
        "indexer.attn_q_b",
        "indexer.attn_k",
        "indexer.proj",
        "indexer_compressor_gate",
        "indexer_compressor_ape",
        "ssm_f_a.weight",
        "ssm_f_b.weight",
        "ssm_g_a.weight",
        "ssm_g_b.weight",
        "ssm_beta.weight",
        "attn_kv_a_mqa.weight",
        "attn_k_b.weight",
        "attn_v_b.weight",
    ),
}


def role_of(name: str) -> str:
    """`output`, `token_embd`, `attn_v` (fused query-key-value matrices too), …, or `other`."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    return next((role for part, role in _BY_PART if part in name), "other")


def why_kept(name: str, shape: Shape, architecture: str) -> str | None:
    """Why a tensor keeps its type whatever the file type; None where it may be quantized.

    Args:
        name: the tensor's.
        shape: in C order; leading axes of one count for nothing.
        architecture: `general.architecture`.
    """
    if all(size == 1 for size in shape[:-1]):
        return "a vector"
    # A name of five characters passes too: in llama.cpp's test, 5 − 6 wraps to the value for "not found".
    if not name.endswith("weight") and len(name.encode()) != 5:
        return "its name does not end in 'weight'"
    if name in _KEPT_NAMES:
        return "a table of positions or token types"
    part = next((part for part in (*_KEPT_PARTS, *_KEPT_PARTS_OF.get(architecture, ())) if part in name), None)
    return None if part is None else f"{part!r} in its name"
