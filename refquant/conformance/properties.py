"""The properties: what a quantized format promises, each one a sentence that can be false.

A property draws an input for a format, checks one statement about it, and knows which formats give the guarantee.
`PROPERTIES` lists them all; spec/ says for each format why it does or does not give one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refquant.arrays import Array, Float32, Shape
from refquant.conformance.bits import assert_same_bits, assert_same_parts
from refquant.conformance.bounds import encodable_range, error_bound, normal_range
from refquant.conformance.definitions import codes, element, stored_codes
from refquant.conformance.guarantees import guarantees
from refquant.conformance.strategies import importance_for, raw_parts, rows, weights
from refquant.errors import NonFiniteError, RefquantError
from refquant.formats import base
from refquant.formats.base import Format, QuantizedTensor


@dataclass(frozen=True)
class Property:
    """One statement about a format.

    Attributes:
        name: the statement, as an identifier.
        draw: the strategy of its inputs for a format.
        check: raises AssertionError where the statement is false for an input.
    """

    name: str
    draw: Callable[[Format], st.SearchStrategy[Any]]
    check: Callable[[Format, Any], None]

    def holds_for(self, fmt: Format) -> bool:
        """Whether the format's page gives this guarantee."""
        return guarantees(fmt, self.name)


PROPERTIES: list[Property] = []

_Check = Callable[[Format, Any], None]


def _property(draw: Callable[[Format], st.SearchStrategy[Any]]) -> Callable[[_Check], _Check]:
    def add(check: _Check) -> _Check:
        PROPERTIES.append(Property(check.__name__, draw, check))
        return check

    return add


def _encodable(fmt: Format) -> st.SearchStrategy[Float32]:
    return weights(fmt, *encodable_range(fmt))


def _normal(fmt: Format) -> st.SearchStrategy[Float32]:
    return weights(fmt, *normal_range(fmt))


def _several_blocks(fmt: Format) -> st.SearchStrategy[tuple[Float32, int]]:
    """A row of blocks, and an integer to choose among them."""
    return st.tuples(rows(fmt, *encodable_range(fmt), max_blocks=4), st.integers(0, 2**16))


def encode(w: Array, fmt: Format, name: str = "w") -> QuantizedTensor:
    """Quantize, with an importance matrix where the format demands one."""
    return base.encode(w, fmt, name, imatrix=importance_for(fmt, w))


def _roundtrip(fmt: Format, w: Array) -> Float32:
    return encode(w, fmt).dequantize()


@_property(raw_parts)
def every_element_decodes_as_its_page_defines(fmt: Format, drawn: tuple[Mapping[str, Array], Shape]) -> None:
    """Decoding any stored bytes gives, element by element, what the slow definition gives, NaN payloads aside."""
    parts, shape = drawn
    decoded = QuantizedTensor(fmt, shape, parts).dequantize()
    size = math.prod(shape)
    for flat in range(0, size, max(1, size // 300)):
        index = tuple(int(i) for i in np.unravel_index(flat, shape))
        expected = element(fmt, parts, shape, index)
        if not (np.isnan(expected) and np.isnan(decoded[index])):
            assert_same_bits(decoded[index].reshape(1), np.array([expected]), f"{fmt} element {index}")


@_property(_encodable)
def every_weight_gets_the_code_that_its_page_defines(fmt: Format, w: Float32) -> None:
    """The codes are those of the slow definition, taken group by group in Python numbers."""
    parts = encode(w, fmt).parts
    expected = np.array(codes(fmt, w), np.uint8)
    assert_same_bits(stored_codes(fmt, parts, w.shape).ravel(), expected, f"{fmt} codes")


@_property(weights)
def any_finite_tensor_is_quantized_to_finite_numbers_or_refused_by_name(fmt: Format, w: Float32) -> None:
    """Finite weights decode to finite numbers, or are refused because a scale would overflow."""
    try:
        decoded = _roundtrip(fmt, w)
    except RefquantError:
        low, high = encodable_range(fmt)
        assert (np.abs(w) >= np.ldexp(1.0, high)).any(), f"{fmt}: refused weights of exponents {low} … {high}"
        return
    assert np.isfinite(decoded).all(), f"{fmt}: finite weights decode to {decoded[~np.isfinite(decoded)][0]}"


@_property(_encodable)
def parts_have_the_layout_that_the_format_declares(fmt: Format, w: Float32) -> None:
    """Dtypes, shapes and sizes are those of `layout`, and the decoded tensor has the shape that was given."""
    q = encode(w, fmt)
    layout = fmt.layout(w.shape)
    assert [*q.parts] == [*layout]
    assert q.nbytes == sum(stored.nbytes for stored in layout.values())
    decoded = q.dequantize()
    assert decoded.shape == w.shape
    assert decoded.dtype == np.float32


@_property(_encodable)
def quantizing_leaves_the_input_alone_and_repeats_itself(fmt: Format, w: Float32) -> None:
    """The caller's array is not written to, and a second run gives the same bits."""
    before = w.copy()
    first = encode(w, fmt)
    assert_same_bits(w, before, "input")
    assert_same_parts(encode(w, fmt).parts, first.parts)


@_property(_normal)
def quantizing_what_was_decoded_gives_the_same_codes(fmt: Format, w: Float32) -> None:
    """Codes are a fixpoint: decode and quantize again, and every code is the same."""
    once = encode(w, fmt)
    again = encode(once.dequantize(), fmt)
    assert_same_bits(again.parts["codes"], once.parts["codes"], f"{fmt} codes")


@_property(_normal)
def the_error_stays_within_the_stated_bound(fmt: Format, w: Float32) -> None:
    """|w − ŵ| is at most what the page states for the element's own scale."""
    q = encode(w, fmt)
    error = np.abs(w.astype(np.float64) - q.dequantize())
    bound = error_bound(fmt, q)
    worst = int(np.argmax(error - bound)) if error.size else 0
    assert (error <= bound).all(), f"{fmt}: error {error.flat[worst]:.9g} above {bound.flat[worst]:.9g} at {worst}"


@_property(_encodable)
def zero_stays_zero(fmt: Format, w: Float32) -> None:
    """A weight that is zero, of either sign, decodes to zero."""
    assert not _roundtrip(fmt, w)[w == 0].any()


@_property(_encodable)
def negating_the_input_negates_the_output(fmt: Format, w: Float32) -> None:
    """The quantizer is odd."""
    np.testing.assert_array_equal(_roundtrip(fmt, -w), -_roundtrip(fmt, w))


def _normal_and_exponent(fmt: Format) -> st.SearchStrategy[tuple[Float32, int]]:
    low, high = normal_range(fmt)
    shift = min(20, (high - low) // 4)
    return st.tuples(weights(fmt, low + shift, high - shift), st.integers(-shift, shift))


@_property(_normal_and_exponent)
def scaling_by_a_power_of_two_scales_the_output_exactly(fmt: Format, drawn: tuple[Float32, int]) -> None:
    """Quantizing w · 2^k decodes to ŵ · 2^k, while every scale stays a normal number."""
    w, exponent = drawn
    expected = np.ldexp(_roundtrip(fmt, w), exponent)
    assert_same_bits(_roundtrip(fmt, np.ldexp(w, exponent)), expected, f"{fmt} scaled by 2^{exponent}")


@_property(_several_blocks)
def blocks_quantized_alone_give_what_they_give_together(fmt: Format, drawn: tuple[Float32, int]) -> None:
    """A run of whole blocks, cut out and quantized alone, decodes to its part of the whole: chunking is free."""
    w, choice = drawn
    size = fmt.block_size or w.size
    count = -(-w.size // size)
    first = choice % count
    last = first + 1 + choice // count % (count - first)
    part = slice(first * size, last * size)
    assert_same_bits(_roundtrip(fmt, w[part]), _roundtrip(fmt, w)[part], f"{fmt} blocks {first} … {last - 1}")


@_property(_several_blocks)
def permuting_blocks_permutes_the_output(fmt: Format, drawn: tuple[Float32, int]) -> None:
    """Whole blocks in another order decode to the same numbers in that order."""
    w, seed = drawn
    size = fmt.block_size or w.size
    blocks = np.resize(w, (-(-w.size // size), size))
    order = np.random.default_rng(seed).permutation(len(blocks))
    permuted = _roundtrip(fmt, blocks[order].ravel()).reshape(blocks.shape)
    assert_same_bits(permuted, _roundtrip(fmt, blocks.ravel()).reshape(blocks.shape)[order], f"{fmt} order {order}")


@_property(_encodable)
def rows_quantized_alone_give_what_they_give_together(fmt: Format, w: Float32) -> None:
    """Each row, quantized alone, decodes to its row of the whole tensor."""
    table = w.reshape(-1, w.shape[-1])
    together = _roundtrip(fmt, table)
    for i, row in enumerate(table):
        assert_same_bits(_roundtrip(fmt, row), together[i], f"{fmt} row {i}")


@_property(_encodable)
def the_answer_does_not_depend_on_memory_layout(fmt: Format, w: Float32) -> None:
    """Column-major, strided, reversed, big-endian and float64 arrays of the same numbers give the same parts."""
    expected = encode(w, fmt).parts
    spread = np.zeros((*w.shape[:-1], 2 * w.shape[-1]), np.float32)
    spread[..., ::2] = w
    views = {
        "column-major": np.asfortranarray(w),
        "strided": spread[..., ::2],
        "reversed": w[..., ::-1].copy()[..., ::-1],
        "big-endian": w.astype(">f4"),
        "float64": w.astype(np.float64),
    }
    for name, view in views.items():
        assert_same_parts(encode(view, fmt).parts, expected, f"{fmt} {name}")


def _weights_and_place(fmt: Format) -> st.SearchStrategy[tuple[Float32, int, float]]:
    return st.tuples(_encodable(fmt), st.integers(0, 2**16), st.sampled_from([np.nan, np.inf, -np.inf]))


@_property(_weights_and_place)
def a_value_that_is_not_finite_is_refused_with_its_index(fmt: Format, drawn: tuple[Float32, int, float]) -> None:
    """NaN and infinities raise NonFiniteError, whose message names the tensor and the first index."""
    w, place, value = drawn
    w = w.copy()
    index = tuple(int(i) for i in np.unravel_index(place % w.size, w.shape))
    w[index] = value
    try:
        encode(w, fmt, "blk.0.weight")
    except NonFiniteError as error:
        message = str(error)
    else:
        raise AssertionError(f"{fmt}: {value} at {index} was accepted")
    assert "blk.0.weight" in message
    assert str(index) in message
