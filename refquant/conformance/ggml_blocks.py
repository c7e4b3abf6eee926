"""Weights and importance matrices for ggml's types: what a block with sub-blocks must meet, and what the columns weigh.

A block is drawn whole, as any format's is, or as sub-blocks of their own kinds and scales: a decoder that takes the
wrong sub-block's scale, and an encoder that rounds the scales of sub-blocks together, are right on a block of one.
"""

import numpy as np
from hypothesis import strategies as st

from refquant.arrays import Float32
from refquant.conformance.strategies import Aim, block, exponents, patterns

_SPANS = (1, 2, 3, 7, 8, 15, 16, 31, 63, 127)


@st.composite
def ggml_block(draw: st.DrawFn, size: int, low: int = -126, high: int = 127) -> Float32:
    """One block, shape (size,): of one kind, or of sub-blocks with distinct kinds and scales, some of them zero."""
    aim = Aim(low, high, draw(st.sampled_from(_SPANS)))
    sub = draw(st.sampled_from([0, 8, 16, 32]))
    if sub == 0 or size <= sub:
        return draw(block(size, aim))
    kinds = np.stack([draw(block(sub, aim)) for _ in range(draw(st.integers(1, 3)))])  # (kinds, sub)
    seed, spread, sparse = draw(st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 3, 10]), st.booleans()))
    rng = np.random.default_rng(seed)
    count = size // sub
    shift = rng.integers(-spread, 1, count)
    numbers: Float32 = np.ldexp(kinds[rng.integers(0, len(kinds), count)], shift[:, None])  # (sub-blocks, sub)
    if sparse:
        numbers[rng.random(count) < 0.2] = 0
    if low > -126:
        numbers[np.abs(numbers) < 2.0**low] = 0
    return numbers.ravel()


@st.composite
def ggml_rows(draw: st.DrawFn, size: int, low: int = -126, high: int = 127) -> Float32:
    """A matrix of one to three rows of one to three blocks, (rows, n); of its blocks one or two are distinct."""
    rows, count, others = draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans()))
    first = draw(ggml_block(size, low, high))
    second = draw(ggml_block(size, low, high)) if others and rows * count > 1 else first
    matrix = np.stack([first, second, first[::-1]])[np.arange(rows * count) % 3]
    return matrix.reshape(rows, count * size)


@st.composite
def imatrix(draw: st.DrawFn, n: int) -> Float32:
    """The importance of n columns, float32 (n,), ≥ 0: equal, spread, with zeros, all zero, tiny, huge, of any bits."""
    kind = draw(st.sampled_from(["ones", "spread", "zeros", "outlier", "patterns", "tiny", "huge", "nothing"]))
    few = min(n, 32)
    match kind:
        case "ones":
            weights = np.ones(few, np.float32)
        case "spread" | "zeros" | "outlier":
            weights = np.abs(draw(exponents(few, -12, 4)))
        case "patterns":
            weights = np.abs(draw(patterns(few)))
        case "tiny":
            weights = np.abs(draw(exponents(few, -126, -100)))
        case "huge":
            weights = np.abs(draw(exponents(few, 100, 127)))
        case _:
            weights = np.zeros(few, np.float32)
    order = np.random.default_rng(draw(st.integers(0, 255))).integers(0, few, n)
    order[:few] = np.arange(few)
    spread: Float32 = weights[order]
    if kind == "zeros":
        spread[draw(st.integers(0, n - 1)) :: draw(st.sampled_from([1, 2, 5, 32]))] = 0
    if kind == "outlier":
        spread[draw(st.integers(0, n - 1))] = np.float32(2.0**60)
    return spread
