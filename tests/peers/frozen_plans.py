"""What tests/conversion/plans.txt must hold, from `llama-quantize --dry-run`; run as a program it prints it."""

import sys
import tempfile
from pathlib import Path

import numpy as np

from refquant.checkpoints.gguf_values import f32, u32
from refquant.conversion import FILE_TYPES
from tests.conversion.frozen import MODELS, line
from tests.conversion.models import facts, shapes, write_model
from tests.peers.llama_quantize import planned_types


def lines():
    """Every line of the file."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (metadata, shape) in MODELS.items():
            path = write(Path(folder, f"{name}.gguf"), metadata, {"vocab": 4} | shape)
            for kind in FILE_TYPES:
                types = dict(planned_types(path, kind.name))
                if types and kind.base is not None:
                    found.append(line(name, kind.name, kind.base, types))
    return found


def write(path, metadata, shape):
    """The model as a file, with what llama.cpp wants to know of it beside what the rules do."""
    values = facts(layers=shape["layers"], experts=shape.get("experts", 0), **metadata)
    arch, embd = values["general.architecture"].value, shape.get("embd", 256)
    numbers = {"context_length": 64, "embedding_length": embd, "feed_forward_length": 256, "vocab_size": 4}
    numbers |= {"rope.dimension_count": embd // values[f"{arch}.attention.head_count"].value}
    numbers |= {"expert_used_count": 2} if "experts" in shape else {}
    values |= {f"{arch}.{key}": u32(value) for key, value in numbers.items()}
    values |= {f"{arch}.attention.{key}_epsilon": f32(1e-5) for key in ("layer_norm", "layer_norm_rms")}
    arrays = {name: np.zeros(extents, np.float32) for name, extents in shapes(**shape).items()}
    return write_model(path, values, arrays).path


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
