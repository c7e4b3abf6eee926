"""Signs of groups of eight: a bit each, or seven where the number of minus signs is even (spec/ggml_iq.md)."""

from functools import cache

import numpy as np

from refquant.arrays import Float32, UInt8

GROUP = 8


@cache
def even_signs() -> UInt8:
    """The eight sign bits that a seven-bit code stands for, (128,): the last one makes their number even."""
    code = np.arange(128, dtype=np.uint8)
    return code | _parity(code) << np.uint8(7)


@cache
def multipliers() -> Float32:
    """−1 or 1 for each bit of a byte, the lowest bit first: (256, 8)."""
    bits = np.arange(256)[:, None] >> np.arange(GROUP) & 1
    return (1 - 2 * bits).astype(np.float32)


def split_signs(w: Float32) -> tuple[Float32, UInt8]:
    """Magnitudes and signs of weights.

    Args:
        w: float32 (positions, columns), groups of eight along the first axis.

    Returns:
        |w|, and a byte for each group, uint8 (positions // 8, columns): bit i is set where weight i is below zero,
        so not for −0.
    """
    groups = w.reshape(-1, GROUP, w.shape[1])
    bits = np.zeros((len(groups), w.shape[1]), np.uint8)
    for i in range(GROUP):
        bits |= (groups[:, i] < 0).view(np.uint8) << np.uint8(i)
    return np.abs(w), bits


def split_even_signs(w: Float32, weights: Float32) -> tuple[Float32, UInt8]:
    """As `split_signs`, with an even number of bits set in each byte.

    Where it is odd, the least important weight of the group gets the other sign, and its magnitude is negative.
    """
    magnitudes, signs = split_signs(w)
    odd = _parity(signs) == 1
    position = _least_important(w, weights)
    groups = magnitudes.reshape(-1, GROUP, w.shape[1])
    for i in range(GROUP):
        flip = odd & (position == i)
        np.negative(groups[:, i], out=groups[:, i], where=flip)
        signs ^= flip.view(np.uint8) << np.uint8(i)
    return magnitudes, signs


def _least_important(w: Float32, weights: Float32) -> UInt8:
    """The position in each group whose (weight · w) · w is least, the first of equal ones: (groups, columns)."""
    importance = (weights * w * w).reshape(-1, GROUP, w.shape[1])
    least = importance[:, 0].copy()
    position = np.zeros(least.shape, np.uint8)
    for i in range(1, GROUP):
        less = importance[:, i] < least
        np.copyto(least, importance[:, i], where=less)
        np.copyto(position, np.uint8(i), where=less)
    return position


def _parity(byte: UInt8) -> UInt8:
    """1 where the number of set bits is odd."""
    for half in (4, 2, 1):
        byte = byte ^ byte >> np.uint8(half)
    return byte & np.uint8(1)
