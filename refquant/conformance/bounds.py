"""What each format states about its range and its error: the numbers in the tables of spec/, as functions.

`normal_range` and `encodable_range` give binary exponents of weights; `error_bound` the largest |w − ŵ| that the
page allows each element.
"""

from functools import singledispatch

import numpy as np

from refquant.arrays import Float64
from refquant.floats import BF16, FP16
from refquant.formats.base import Format, QuantizedTensor
from refquant.formats.integer import Integer
from refquant.formats.scales import load_scales

_PRECISION = {"float32": 24, "float16": FP16.mantissa_bits + 1, "bfloat16": BF16.mantissa_bits + 1}


@singledispatch
def normal_range(fmt: Format) -> tuple[int, int]:
    """Binary exponents of non-zero weights for which every stored scale is a normal number of its type."""
    return -100, 100


@normal_range.register
def _(fmt: Integer) -> tuple[int, int]:
    return (-6, 13) if fmt.scale_dtype == "float16" else (-100, 120)


@singledispatch
def encodable_range(fmt: Format) -> tuple[int, int]:
    """Binary exponents of weights that are never refused; −126 stands for subnormals too."""
    return -126, 127


@encodable_range.register
def _(fmt: Integer) -> tuple[int, int]:
    return -126, normal_range(fmt)[1]


@singledispatch
def error_bound(fmt: Format, q: QuantizedTensor) -> Float64:
    """The largest |w − ŵ| that the format's page allows each element of q, while scales are normal numbers."""
    raise NotImplementedError(f"{type(fmt).__name__} states no error bound")


@error_bound.register
def _(fmt: Integer, q: QuantizedTensor) -> Float64:
    step = load_scales(q.parts["scales"], fmt.scale_dtype).astype(np.float64)
    if fmt.group_size is not None and q.parts["scales"].size:
        width = q.shape[-1] if fmt.group_size == -1 else fmt.group_size
        step = np.repeat(step, max(width, 1), axis=-1)[..., : q.shape[-1]]
    # Half a step, and the rounding of w / s, of a code's product with s, and, with a zero point, of the stored scale,
    # which moves the ends of the range by up to largest_code · 2^−p steps.
    steps = 0.5 + fmt.largest_code * 2.0**-23
    if not fmt.symmetric:
        steps += fmt.largest_code * 2.0 ** -_PRECISION[fmt.scale_dtype]
    return np.broadcast_to(steps * step, q.shape)
