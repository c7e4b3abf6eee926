"""Small models as GGUF files, for tests of conversions."""

import numpy as np

from refquant.checkpoints.gguf_values import boolean, string, strings, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.checkpoints.opening import open as open_checkpoint


def facts(arch="llama", layers=2, heads=4, kv_heads=4, experts=0, **more):
    """Metadata as the rules need it; `more` are further integers of the architecture."""
    numbers = {
        "block_count": layers,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "expert_count": experts,
    }
    values = {"general.architecture": string(arch), "general.flag": boolean(True), "general.words": strings(["a", "b"])}
    return values | {f"{arch}.{key.replace('__', '.')}": u32(value) for key, value in (numbers | more).items()}


def shapes(layers=2, embd=256, ff=256, vocab=8, tied=False, experts=0):
    """The usual tensors, in an order that is not llama-quantize's."""
    found = {} if tied else {"output.weight": (vocab, embd)}
    stack, suffix = ((experts,), "_exps") if experts else ((), "")
    for i in reversed(range(layers)):
        block = {"ffn_norm": (embd,), f"ffn_down{suffix}": (*stack, embd, ff), f"ffn_up{suffix}": (*stack, ff, embd)}
        block |= {f"ffn_gate{suffix}": (*stack, ff, embd)}
        block |= {f"attn_{part}": (embd, embd) for part in ("q", "k", "v", "output")}
        found |= {f"blk.{i}.{name}.weight": shape for name, shape in block.items()}
    return found | {"token_embd.weight": (vocab, embd), "output_norm.weight": (embd,)}


def write_model(path, metadata=None, arrays=None, draw=None, **shape):
    """A file of random float32 tensors, or of the arrays given; opened."""
    draw = draw or np.random.default_rng(0)
    if arrays is None:
        arrays = {name: draw.standard_normal(extents).astype(np.float32) for name, extents in shapes(**shape).items()}
    kinds = {"float32": "F32", "float16": "F16", "int32": "I32"}
    sources = [TensorSource(name, kinds[a.dtype.name], a.shape, lambda a=a: a) for name, a in arrays.items()]
    write_gguf(path, metadata or facts(layers=shape.get("layers", 2), experts=shape.get("experts", 0)), sources)
    return open_checkpoint(path)


class Listed:
    """A model without data: names and shapes, and metadata."""

    def __init__(self, metadata, extents, dtype="F32"):
        self.path = "listed"
        self.typed_metadata = metadata
        self.tensors = {name: ListedTensor(name, shape, dtype) for name, shape in extents.items()}


class ListedTensor:
    def __init__(self, name, shape, dtype):
        self.name, self.shape, self.dtype, self.path = name, shape, dtype, "listed"
