"""Products as llama.cpp computes them on a CPU: the input of a quantized matrix is rounded to eight bits first.

Weights mean the same; what a figure of llama.cpp shows beyond them is this rounding (spec/evaluation.md).
"""

from dataclasses import dataclass

import numpy as np

from refquant.arrays import Float32, Shape
from refquant.errors import unknown_name
from refquant.formats.ggml import GgmlFormat
from refquant.formats.registry import get_format
from refquant.models.gguf_loading import Reordered
from refquant.models.model import Model
from refquant.models.weights import Weight, product

ACTIVATIONS = ("float32", "llama.cpp")

# The type that the input of a product is rounded to, by the type of the matrix: `vec_dot_type` in ggml-cpu.c.
_WITH_MINIMUM = ("q4_1", "q5_1", "q8_1")
_BLOCKS_OF_32 = ("q1_0", "q2_0", "q4_0", "q5_0", "q8_0", "iq4_nl", "mxfp4", "nvfp4")
_SAME = ("f16", "bf16")


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A weight whose product rounds its input to another type first."""

    weight: Weight
    input_format: GgmlFormat

    @property
    def shape(self) -> Shape:
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def dequantize(self) -> Float32:
        return self.weight.dequantize()

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
    name = str(getattr(stored, "format", getattr(stored, "dtype", ""))).lower()
    if name in _SAME:
        kind = name
    elif name in _WITH_MINIMUM:
        kind = "q8_1"
    elif name in _BLOCKS_OF_32:
        kind = "q8_0"
    elif isinstance(getattr(stored, "format", None), GgmlFormat):
        kind = "q8_k"
    else:
        return None
    fmt = get_format(kind)
    assert isinstance(fmt, GgmlFormat)
    return _Rounded(weight, fmt)
