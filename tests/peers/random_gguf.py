"""Small random models of many shapes as GGUF files, written by the `gguf` package."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

TYPES = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class Shape:
    """A model's shape; the defaults are a small Llama whose rows hold whole blocks of 256."""

    arch: str = "llama"
    layers: int = 4
    embd: int = 256
    ff: int = 512
    heads: int = 8
    kv_heads: int = 8
    experts: int = 0
    vocab: int = 96
    tied: bool = False
    fused_qkv: bool = False
    extra: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes in C order."""
        head = self.embd // self.heads
        kv = head * self.kv_heads
        shapes = {"token_embd.weight": (self.vocab, self.embd), "output_norm.weight": (self.embd,)}
        if not self.tied:
            shapes["output.weight"] = (self.vocab, self.embd)
        for i in range(self.layers):
            block = {"attn_norm": (self.embd,), "ffn_norm": (self.embd,), "attn_output": (self.embd, self.embd)}
            if self.fused_qkv:
                block["attn_qkv"] = (self.embd + 2 * kv, self.embd)
            else:
                block |= {"attn_q": (self.embd, self.embd), "attn_k": (kv, self.embd), "attn_v": (kv, self.embd)}
            stack, suffix = ((self.experts,), "_exps") if self.experts else ((), "")
            if self.experts:
                block["ffn_gate_inp"] = (self.experts, self.embd)
            block |= {f"ffn_{part}{suffix}": (*stack, self.ff, self.embd) for part in ("gate", "up")}
            block[f"ffn_down{suffix}"] = (*stack, self.embd, self.ff)
            shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
        return shapes | dict(self.extra)


def write(path: Path, shape: Shape, dtype: str = "F32", seed: int = 0, metadata: dict | None = None) -> Path:
    """The model with normal weights: matrices in `dtype`, vectors in float32."""
    writer = gguf.GGUFWriter(path, shape.arch)
    writer.add_name("random")
    writer.add_context_length(64)
    writer.add_embedding_length(shape.embd)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.embd // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(shape.vocab)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(2)
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.words", ["a", "bc"])
    for key, value in (metadata or {}).items():
        writer.add_uint32(key, value)
    draw = np.random.default_rng(seed)
    for name, extents in shape.tensors().items():
        array = (draw.standard_normal(extents) * 0.05).astype(np.float32)
        writer.add_tensor(name, array.astype(TYPES[dtype]) if len(extents) > 1 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
