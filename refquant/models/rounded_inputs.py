"""Products as llama.cpp computes them on a CPU: the input of a quantized matrix is rounded to eight bits first.

Weights mean the same; what a figure of llama.cpp shows beyond them is this rounding (spec/evaluation.md).
"""

from dataclasses import dataclass

import numpy as np

from refquant.arrays import Float32
from refquant.errors import unknown_name
from refquant.formats.ggml import GgmlFormat
from refquant.formats.registry import get_format
from refquant.models.gguf_loading import Reordered
from refquant.models.model import Model
from refquant.models.weights import Weight, Wrapped, product

ACTIVATIONS = ("float32", "llama.cpp")

# The type that the input of a product is rounded to, by the type of the matrix: `vec_dot_type` in ggml-cpu.c.
_WITH_MINIMUM = ("q4_1", "q5_1", "q8_1")
_SUPER_BLOCK = 256  # types of such blocks go with q8_k, all others with q8_0
_SAME = ("f16", "bf16")


@dataclass(eq=False)
class _Rounded(Wrapped):
    """A weight whose product rounds its input to another type first."""

    input_format: GgmlFormat

    def linear(self, x: Float32) -> Float32:
        flat = np.ascontiguousarray(x).reshape(-1, x.shape[-1])  # (tokens, n)
        stored = self.input_format.encode_bytes(flat)
        rounded = self.input_format.decode({"blocks": stored}, flat.shape)
        return product(rounded.reshape(x.shape), self.weight)


def with_activations(model: Model, activations: str) -> Model:
    """The model with the inputs of its matrices as they are ("float32"), or rounded as llama.cpp does ("llama.cpp").

    The products' sums stay float32 through BLAS, where llama.cpp adds integers block by block; keys and values
    stay float32, where it keeps float16. A float32 matrix takes its input as it is.

    Raises:
        UnknownNameError: another word.
    """
    if activations not in ACTIVATIONS:
        raise unknown_name("kind of activations", activations, ACTIVATIONS)
    if activations == "float32":
        return model
    names = dict.fromkeys((*model.linear_names, model.names.head))
    rounded = {name: _rounded(model.weights[name]) for name in names}
    return model.with_weights({name: weight for name, weight in rounded.items() if weight is not None})


def _rounded(weight: Weight) -> Weight | None:
    stored = weight.stored if isinstance(weight, Reordered) else weight
    stored_format = getattr(stored, "format", None)
    name = str(stored_format or getattr(stored, "dtype", "")).lower()
    if name in _SAME:
        kind = name
    elif not isinstance(stored_format, GgmlFormat):
        return None
    elif name in _WITH_MINIMUM:
        kind = "q8_1"
    else:
        kind = "q8_k" if stored_format.block_size == _SUPER_BLOCK else "q8_0"
    fmt = get_format(kind)
    assert isinstance(fmt, GgmlFormat)
    return _Rounded(weight, fmt)
