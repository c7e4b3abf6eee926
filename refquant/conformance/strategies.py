"""Hypothesis strategies for weights and for stored parts: bit patterns first, friendly numbers last.

A random normal never meets a tie, a subnormal, a one-sided block or a scale at the edge of its type, and that is
where quantizers break. So a block is drawn as one of the `KINDS` below, each of which aims at one such place. All
strategies shrink towards fewer, shorter blocks of zeros.
"""

import math
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
from hypothesis import strategies as st

from refquant.arrays import Array, Float32, Shape
from refquant.formats.base import Format

_SPECIAL_SCALES = (0.0, -0.0, 1.0, 2.0**-24, np.inf, -np.inf, np.nan)
_EXPONENT_FIELD = np.uint32(0x7F800000)


def patterns(size: int) -> st.SearchStrategy[Float32]:
    """`size` finite float32 numbers of any bit pattern: zeros of both signs, subnormals and the largest included."""
    return st.binary(min_size=4 * size, max_size=4 * size).map(_finite)


def _finite(raw: bytes) -> Float32:
    bits = np.frombuffer(raw, "<u4").copy()
    special = bits & _EXPONENT_FIELD == _EXPONENT_FIELD
    bits[special] ^= np.uint32(0x40000000)  # a NaN or infinity becomes a number near 1
    return bits.view(np.float32)


@st.composite
def exponents(draw: st.DrawFn, size: int, low: int, high: int) -> Float32:
    """`size` numbers of any sign and fraction, their binary exponents in low … high; some of them zero."""
    bits = np.frombuffer(draw(st.binary(min_size=4 * size, max_size=4 * size)), "<u4")
    fraction = bits & np.uint32(0x807FFFFF)
    exponent = ((bits >> np.uint32(23)) & np.uint32(0xFF)) % np.uint32(high - low + 1) + np.uint32(127 + low)
    numbers = (fraction | exponent << np.uint32(23)).view(np.float32)
    return np.where(bits == 0, np.float32(0), numbers)


@st.composite
def subnormals(draw: st.DrawFn, size: int) -> Float32:
    """`size` subnormal numbers and zeros of both signs."""
    raw = draw(st.binary(min_size=4 * size, max_size=4 * size))
    numbers: Float32 = (np.frombuffer(raw, "<u4") & ~_EXPONENT_FIELD).view(np.float32)
    return numbers


@st.composite
def half_steps(draw: st.DrawFn, size: int, span: int) -> Float32:
    """Ties of a grid: (k + ½)·s for |k| < span and their float32 neighbours, and one ±span·s that makes s the step."""
    step = np.ldexp(np.float32(draw(st.sampled_from([1.0, 3.0, 5.0]))), draw(st.integers(-20, 20)))
    raw = np.frombuffer(draw(st.binary(min_size=2 * size, max_size=2 * size)), "<u2").astype(np.int64)
    k = raw // 8 % (2 * span) - span
    ties: Float32 = ((k + 0.5) * step).astype(np.float32)
    towards = np.array([0, 0, 0, 0, 0, 0, -np.inf, np.inf], np.float32)[raw % 8]
    ties = np.where(towards == 0, ties, np.nextafter(ties, towards)).astype(np.float32)
    if size:
        ties[draw(st.integers(0, size - 1))] = draw(st.sampled_from([span, -span])) * step
    return ties


@st.composite
def ranges_of_ties(draw: st.DrawFn, size: int, span: int) -> Float32:
    """A range of `span` steps from (k + ½)·s below zero to (span − k − ½)·s above: both of its ends are ties."""
    step = np.ldexp(np.float32(1), draw(st.integers(-20, 20)))
    below = draw(st.integers(0, span)) + np.float32(0.5)
    ends = np.array([-below, span - below], np.float32)
    inside = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8) / np.float32(255) * span - below
    numbers: Float32 = np.concatenate([ends, np.rint(inside * 2) / 2])[:size].astype(np.float32) * step
    return numbers


@dataclass(frozen=True)
class Aim:
    """What a block is aimed at.

    Attributes:
        low: smallest binary exponent of a non-zero number, −126 letting subnormals in.
        high: binary exponent that numbers stay below, 127 letting the largest in.
        span: steps of the format's grid between zero, or the lower end, and the largest weight.
    """

    low: int = -126
    high: int = 127
    span: int = 7


@st.composite
def block(draw: st.DrawFn, size: int, aim: Aim = Aim()) -> Float32:
    """One block of `size` numbers of one of the KINDS."""
    # Few numbers are drawn and then spread over the block, so that large blocks stay cheap and shrink well.
    pool_size = min(size, 24)
    pool = draw(st.sampled_from(KINDS))(pool_size, aim, draw)
    if size <= pool_size:
        return pool
    order = np.random.default_rng(draw(st.integers(0, 255))).integers(0, pool_size, size)
    order[:pool_size] = np.arange(pool_size)
    return pool[order]


def _zeros(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    return np.zeros(size, np.float32) * np.float32(draw(st.sampled_from([1.0, -1.0])))


def _any_pattern(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    if (aim.low, aim.high) == (-126, 127):
        return draw(patterns(size))
    return draw(exponents(size, aim.low, aim.high - 1))


def _few_binades(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    top = draw(st.integers(aim.low, aim.high - 1))
    return draw(exponents(size, max(aim.low, top - 6), top))


def _one_sided(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    return np.abs(_few_binades(size, aim, draw)) * np.float32(draw(st.sampled_from([1.0, -1.0])))


def _equal(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    return np.repeat(draw(exponents(1, aim.low, aim.high - 1)), size)


def _outlier(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    numbers = draw(exponents(size, aim.low, max(aim.low, aim.high - 20)))
    if size:
        numbers[draw(st.integers(0, size - 1))] = draw(exponents(1, aim.high - 1, aim.high - 1))[0]
    return numbers


def _ties(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    return _inside(draw(half_steps(size, aim.span)), aim)


def _range_of_ties(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    return _inside(draw(ranges_of_ties(size, aim.span)), aim)


def _inside(numbers: Float32, aim: Aim) -> Float32:
    """Zero for what lies outside the aimed exponents."""
    magnitude = np.abs(numbers)
    return np.where((magnitude < 2.0**aim.low) | (magnitude >= 2.0**aim.high), np.float32(0), numbers)


def _tiny(size: int, aim: Aim, draw: st.DrawFn) -> Float32:
    return draw(subnormals(size)) if aim.low == -126 else draw(exponents(size, aim.low, aim.low + 1))


KINDS = (_zeros, _any_pattern, _few_binades, _one_sided, _equal, _outlier, _ties, _range_of_ties, _tiny)


def _aim(fmt: Format, low: int, high: int) -> Aim:
    return Aim(low, high, getattr(fmt, "largest_code", 7))


@singledispatch
def rows(fmt: Format, low: int = -126, high: int = 127, max_blocks: int = 3) -> st.SearchStrategy[Float32]:
    """One row, shape (n,): up to `max_blocks` blocks of the format, each of its own kind, the last often short."""
    return _rows(fmt, low, high, max_blocks)


@st.composite
def _rows(draw: st.DrawFn, fmt: Format, low: int, high: int, max_blocks: int) -> Float32:
    aim, size = _aim(fmt, low, high), fmt.block_size
    if size is None:  # the row, or the tensor, is one block
        return draw(block(draw(st.integers(1, 70)), aim))
    whole = [draw(block(size, aim)) for _ in range(draw(st.integers(0, max_blocks)))]
    tail = draw(block(draw(st.integers(0 if whole else 1, max(1, min(size - 1, 70)))), aim))
    return np.concatenate([*whole, tail])


@st.composite
def weights(draw: st.DrawFn, fmt: Format, low: int = -126, high: int = 127) -> Float32:
    """A tensor of one to three axes, each row drawn as by `rows`, all of the first row's length."""
    first = draw(rows(fmt, low, high))
    lead = draw(st.sampled_from([(), (1,), (2,), (3,), (1, 2)]))
    others = [draw(rows(fmt, low, high)) for _ in range(math.prod(lead) - 1)]
    return np.stack([first, *(np.resize(row, first.shape) for row in others)]).reshape(*lead, first.size)


@singledispatch
def importance_for(fmt: Format, w: Float32) -> Float32 | None:
    """The importance matrix without which the format cannot encode these weights; None for most."""
    return None


@singledispatch
def shapes(fmt: Format) -> st.SearchStrategy[Shape]:
    """Shapes around the format's block: short rows, one weight past a block, several rows, no rows."""
    size = fmt.block_size or 32
    lengths = st.sampled_from([0, 1, 2, 3, 7, 8, size - 1, size, size + 1, 2 * size, 2 * size + 5])
    return st.tuples(st.sampled_from([(), (1,), (3,), (0,), (2, 2)]), lengths).map(lambda s: (*s[0], s[1]))


@st.composite
def raw_parts(draw: st.DrawFn, fmt: Format) -> tuple[dict[str, Array], Shape]:
    """Stored parts of any bytes whatever, with the shape of the tensor they claim to be."""
    shape = draw(shapes(fmt))
    parts: dict[str, Array] = {}
    for name, (dtype, part_shape) in fmt.layout(shape).items():
        size = math.prod(part_shape) * dtype.itemsize
        pool = draw(st.binary(min_size=min(size, 64), max_size=min(size, 64)))
        part = np.resize(np.frombuffer(pool, np.uint8), size).view(dtype).copy()
        if part.size and dtype.kind == "f":  # most bit patterns are ordinary numbers
            part[draw(st.integers(0, part.size - 1))] = draw(st.sampled_from(_SPECIAL_SCALES))
        parts[name] = part.reshape(part_shape)
    return parts, shape
