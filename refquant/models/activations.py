"""The non-linearities of MLPs, in place on float32 arrays."""

import math
from collections.abc import Callable

import numpy as np

from refquant.arrays import Float32

_ROOT_2_OVER_PI = np.float32(math.sqrt(2 / math.pi))
_CUBIC = np.float32(0.044715)


def silu(x: Float32) -> Float32:
    """x / (1 + e^−x): Hendrycks & Gimpel, arXiv:1606.08415. −inf gives nan, as 0·∞ does."""
    denominator = np.negative(x)
    np.exp(denominator, out=denominator)  # overflows to infinity below −88, and x / ∞ is −0
    denominator += 1
    x /= denominator
    return x


def gelu_tanh(x: Float32) -> Float32:
    """x / 2 · (1 + tanh(√(2/π)·(x + 0.044715 x³))): the tanh form of GELU in arXiv:1606.08415."""
    inner = x * x
    inner *= _CUBIC
    inner += 1
    inner *= x
    inner *= _ROOT_2_OVER_PI
    np.tanh(inner, out=inner)
    inner += 1
    inner *= np.float32(0.5)
    x *= inner
    return x


def relu(x: Float32) -> Float32:
    """max(x, 0)."""
    np.maximum(x, 0, out=x)
    return x


ACTIVATIONS: dict[str, Callable[[Float32], Float32]] = {
    "silu": silu,
    "swish": silu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
}
