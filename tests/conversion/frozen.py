"""Plans of llama-quantize as text: `plans.txt`, one line a model and file type, the tensors that are not of the base.

`python -m tests.peers.frozen_plans` prints what the file must hold; a test of the peers compares.
"""

import re
from pathlib import Path

from tests.conversion.models import Listed, facts, shapes

PATH = Path(__file__).with_name("plans.txt")

# name: metadata and shape, as tests/conversion/models.py makes models of them
MODELS = {
    "llama-16": ({}, {"layers": 16}),
    "grouped-9": ({"heads": 8, "kv_heads": 2}, {"layers": 9, "tied": True}),
    "experts-8": ({"heads": 8, "kv_heads": 2}, {"layers": 8, "experts": 8}),
    "experts-4": ({}, {"layers": 8, "experts": 4}),
    "falcon-17": ({"arch": "falcon"}, {"layers": 17, "tied": True}),
    "rows-96": ({}, {"layers": 4, "embd": 96, "ff": 96}),
}


def listed(name):
    """A model of MODELS without data."""
    metadata, shape = MODELS[name]
    return Listed(
        facts(layers=shape["layers"], experts=shape.get("experts", 0), **metadata), shapes(**{"vocab": 4} | shape)
    )


def line(model, file_type, base, types):
    """`llama-16 Q4_K_M base Q4_K: attn_v Q6_K 0,1,4 · …`, the blocks of each role and type."""
    groups = {}
    for name, kind in types.items():
        block = re.fullmatch(r"blk\.(\d+)\.(.*?)(_exps)?\.weight", name)
        if kind not in (base, "F32"):
            groups.setdefault((block[2] if block else name, kind), []).append(block[1] if block else "")
    all_blocks = MODELS[model][1]["layers"]
    said = " · ".join(
        f"{role} {kind} {'all' if len(blocks) == all_blocks else ','.join(blocks)}".rstrip()
        for (role, kind), blocks in sorted(groups.items())
    )
    return f"{model} {file_type} base {base}: {said}".rstrip()
