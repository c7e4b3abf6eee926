"""Weights next to the places where a code book changes its code: midpoints, its own values, the edges of bins."""

import numpy as np
from hypothesis import strategies as st

from refquant.arrays import Float32, Float64
from refquant.conformance.strategies import exponents
from refquant.formats.tables import load_table


def midpoints(table: str) -> Float64:
    """The exact midpoints of neighbouring values, ascending."""
    values = np.sort(load_table(table)).astype(np.float64)
    return (values[:-1] + values[1:]) / 2


@st.composite
def near_changes(draw: st.DrawFn, table: str, size: int, low: int = -126, high: int = 127) -> Float32:
    """One block, shape (size,): numbers within three float32 neighbours of where the code changes, and their absmax.

    Args:
        draw: Hypothesis's.
        table: a code book of refquant/formats/tables.
        size: weights in the block, at least one.
        low: smallest binary exponent of the absmax.
        high: largest.
    """
    top = draw(exponents(1, low, high))[0]
    places = np.concatenate([midpoints(table), load_table(table), 2 * (np.arange(65536) - 0.5) / 65535 - 1])
    few = min(size, 24)
    raw = np.frombuffer(draw(st.binary(min_size=4 * few, max_size=4 * few)), "<u4").astype(np.int64)
    # Half of the numbers lie at the table's own places, the others at the edges of the 65,536 bins of dynamic8.
    own = len(places) - 65536
    place = np.where(raw & 8, raw >> 4, (raw >> 4) % own) % len(places)
    numbers = (places[place] * float(top)).astype(np.float32)
    numbers = (numbers.view(np.int32) + np.where(numbers == 0, 0, raw % 7 - 3).astype(np.int32)).view(np.float32)
    numbers = np.resize(numbers.clip(-abs(top), abs(top)), size)
    numbers[draw(st.integers(0, size - 1))] = top
    return numbers


@st.composite
def tensors(draw: st.DrawFn, table: str, block_size: int, low: int = -126, high: int = 127) -> Float32:
    """One to three blocks of `near_changes`, shape (n,), the last with any number of weights."""
    whole = [draw(near_changes(table, block_size, low, high)) for _ in range(draw(st.integers(0, 2)))]
    short = draw(st.sampled_from([1, 2, 3, 7, block_size // 2, block_size - 1, block_size]))
    return np.concatenate([*whole, draw(near_changes(table, short, low, high))])
