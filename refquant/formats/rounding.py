"""The roundings that ggml's C names, over whole arrays, to the bit."""

import numpy as np

from refquant.arrays import Float32, Int32

_MAGIC = np.float32(12582912.0)  # 1.5 · 2^23: adding it leaves the rounded integer in the low mantissa bits
_MANTISSA = np.int32(0x007FFFFF)
_ZERO = np.int32(0x00400000)
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))


def nearest_int(x: Float32) -> Int32:
    """To the nearest integer, ties to even, as ggml's `nearest_int` reads it off the mantissa of x + 1.5·2^23.

    Exact for |x| ≤ 4194303. Beyond that, and for NaN, the result is what the same bit operations give in C.

    Source: ggml/src/ggml-quants.c, nearest_int.
    """
    bits: Int32 = (x + _MAGIC).view(np.int32)
    bits &= _MANTISSA
    bits -= _ZERO
    return bits


def round_half_away(x: Float32) -> Float32:
    """To the nearest integer, ties away from zero, as C's `roundf`; −0 for what rounds to zero from below."""
    # One half would round 0.49999997 up. Less than it does not, and still carries every tie: their sum lies at
    # most half way from the next integer to the float32 below, and a tie goes to the integer, which is even.
    rounded: Float32 = np.copysign(_BELOW_HALF, x)
    rounded += x
    np.trunc(rounded, out=rounded)
    return rounded
