"""ggml's types in the kit: how each decodes, what each is given to encode, and which guarantees it does not give."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from hypothesis import strategies as st

from refquant.arrays import Array, Float32, Shape
from refquant.conformance import ggml_iq, ggml_iq1, ggml_iq4, ggml_k, ggml_simple
from refquant.conformance.bounds import encodable_range, normal_range
from refquant.conformance.definitions import element
from refquant.conformance.ggml_blocks import ggml_block
from refquant.conformance.guarantees import exceptions
from refquant.conformance.strategies import Aim, block, importance_for, rows, shapes
from refquant.formats.ggml import GgmlFormat

ELEMENTS: Mapping[str, ggml_simple.Element] = MappingProxyType(
    {**ggml_simple.ELEMENTS, **ggml_k.ELEMENTS, **ggml_iq.ELEMENTS, **ggml_iq1.ELEMENTS, **ggml_iq4.ELEMENTS}
)


@element.register
def _ggml_element(fmt: GgmlFormat, parts: Mapping[str, Array], shape: Shape, index: Shape) -> np.float32:
    count, place = divmod(int(np.ravel_multi_index(index, shape)), fmt.block_size)
    size = fmt.type.struct.itemsize
    stored = parts["blocks"].reshape(-1)[count * size : (count + 1) * size].tobytes()
    return ELEMENTS[fmt.name](stored, place)


@rows.register
def _ggml_rows(fmt: GgmlFormat, low: int = -126, high: int = 127, max_blocks: int = 3) -> st.SearchStrategy[Float32]:
    if fmt.block_size == 1:
        return st.integers(1, 70).flatmap(lambda n: block(n, Aim(low, high)))
    few = st.lists(ggml_block(fmt.block_size, low, high), min_size=1, max_size=max_blocks)
    return few.map(np.concatenate)


@shapes.register
def _ggml_shapes(fmt: GgmlFormat) -> st.SearchStrategy[Shape]:
    lead = st.sampled_from([(), (1,), (3,), (0,), (2, 2)])
    return st.tuples(lead, st.integers(0, 3)).map(lambda s: (*s[0], s[1] * fmt.block_size))


@importance_for.register
def _ggml_importance(fmt: GgmlFormat, w: Float32) -> Float32 | None:
    return np.ones(w.shape[-1], np.float32) if fmt.needs_imatrix else None


# Binary exponents between which no stored scale is refused (the upper) and every one is normal (both).
_RANGES = MappingProxyType(
    {
        "q1_0": (-7, 15),
        "q2_0": (-14, 15),
        "q4_0": (-11, 18),
        "q5_0": (-10, 19),
        "q8_0": (-7, 22),
        "q8_1": (-7, 10),
        "q8_k": (-100, 127),
        "f16": (-14, 15),
        "bf16": (-126, 127),
        "mxfp4": (-100, 127),
        "nvfp4": (-3, 10),
    }
)


@normal_range.register
def _(fmt: GgmlFormat) -> tuple[int, int]:
    return _RANGES.get(fmt.name, (-6, 14))


@encodable_range.register
def _(fmt: GgmlFormat) -> tuple[int, int]:
    return -126, normal_range(fmt)[1]


_SYMMETRIC = {"q2_0", "q4_0", "q5_0", "q8_0", "q8_1", "f16", "bf16", "tq1_0", "tq2_0", "mxfp4", "nvfp4"}
_ODD = _SYMMETRIC | {"q6_k", "q8_k", "iq4_nl", "iq4_xs"}
_SCALING = (_SYMMETRIC | {"q1_0", "q8_k"}) - {"mxfp4"}
_WITH_ZERO = _SYMMETRIC | {"q3_k", "q6_k", "q8_k"}


@exceptions.register
def _(fmt: GgmlFormat) -> dict[str, str]:
    without = {
        "every_weight_gets_the_code_that_its_page_defines": (
            "ggml itself is the second reading of an encoder: tests/peers/test_ggml.py, and its frozen bytes"
        ),
        "quantizing_what_was_decoded_gives_the_same_codes": "a search, or a rounded scale, may choose others",
        "the_error_stays_within_the_stated_bound": "the pages state none: ggml's searches have no bound",
    }
    if fmt.name not in _WITH_ZERO:
        without["zero_stays_zero"] = "no code stands for zero, or the stored minimum is rounded"
    if fmt.name not in _ODD:
        without["negating_the_input_negates_the_output"] = (
            "a minimum, a zero that takes the sign of positive numbers, or the parity of signs tells them apart"
        )
    if fmt.name not in _SCALING:
        without["scaling_by_a_power_of_two_scales_the_output_exactly"] = (
            "a float32 logarithm, an absolute threshold, or a scale that is small where the weights are not"
        )
    return without
