"""spec/llm_int8.md read a second time, one element at a time: the definition, bound and range of `llm-int8`."""

import math
from collections.abc import Mapping

import numpy as np

from refquant.arrays import Array, Float32, Float64, Shape
from refquant.conformance.bounds import encodable_range, error_bound, normal_range
from refquant.conformance.definitions import codes, element, f32, product, stored_code
from refquant.formats.base import QuantizedTensor
from refquant.formats.llm_int8 import LlmInt8


@element.register
def _element(fmt: LlmInt8, parts: Mapping[str, Array], shape: Shape, index: Shape) -> np.float32:
    row = int(np.ravel_multi_index(index[:-1], shape[:-1])) if len(index) > 1 else 0
    return product(float(product(float(parts["codes"][index]), float(parts["absmax"][row]))), f32(1 / 127))


@stored_code.register
def _stored_code(fmt: LlmInt8, parts: Mapping[str, Array], shape: Shape, index: Shape) -> int:
    return int(parts["codes"][index]) % 256


@codes.register
def _codes(fmt: LlmInt8, w: Float32) -> list[int]:
    found: list[int] = []
    for row in w.reshape(-1, w.shape[-1]):
        absmax = max((abs(float(x)) for x in row), default=0.0)
        inverse = f32(f32(1 / absmax) * 127) if absmax else math.inf
        steps = [f32(float(x) * inverse) for x in row]
        found += [round(step) % 256 if math.isfinite(step) else 0 for step in steps]
    return found


@normal_range.register
def _(fmt: LlmInt8) -> tuple[int, int]:
    return -100, 120


@encodable_range.register
def _(fmt: LlmInt8) -> tuple[int, int]:
    return -126, 120


@error_bound.register
def _(fmt: LlmInt8, q: QuantizedTensor) -> Float64:
    # Half a step, and six roundings of at most 2^-24 of the row's absmax: two of the reciprocal, the product, the two
    # of decoding, and that of 1/127 itself.
    step = q.parts["absmax"].astype(np.float64) / 127
    return np.broadcast_to(((0.5 + 127 * 6 * 2.0**-24) * step).reshape(*q.shape[:-1], 1), q.shape)
