"""Comparing bits, not values: dtype, shape and every bit pattern."""

from collections.abc import Mapping

import numpy as np

from refquant.arrays import Array


def assert_same_bits(actual: Array, expected: Array, what: str = "array") -> None:
    """Fail unless both arrays have the same dtype, shape and bit patterns.

    The message shows how many elements differ, the first index, and both elements in hex and as numbers.
    """
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        raise AssertionError(
            f"{what}: {actual.dtype} {actual.shape} where {expected.dtype} {expected.shape} was expected"
        )
    raw_actual, raw_expected = (_patterns(a) for a in (actual, expected))
    different = (raw_actual != raw_expected).any(axis=-1)
    if different.any():
        first = int(np.argmax(different))
        index = tuple(int(i) for i in np.unravel_index(first, actual.shape))
        got, wanted = _show(actual[index], raw_actual[first]), _show(expected[index], raw_expected[first])
        raise AssertionError(
            f"{what}: {np.count_nonzero(different)} of {actual.size} elements differ, first at {index}: "
            f"{got} where {wanted} was expected"
        )


def assert_same_parts(actual: Mapping[str, Array], expected: Mapping[str, Array], what: str = "parts") -> None:
    """Fail unless both hold the same parts, bit for bit."""
    if set(actual) != set(expected):
        raise AssertionError(f"{what}: {sorted(actual)} where {sorted(expected)} was expected")
    for name, part in expected.items():
        assert_same_bits(actual[name], part, f"{what}: {name}")


def _patterns(array: Array) -> Array:
    """(..., ) of any dtype as (elements, bytes)."""
    return np.ascontiguousarray(array).reshape(-1, 1).view(np.uint8).reshape(array.size, array.dtype.itemsize)


def _show(value: object, pattern: Array) -> str:
    return f"0x{pattern[::-1].tobytes().hex()} ({value})"
