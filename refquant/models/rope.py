"""Rotary position embedding: each scaling is a record of its parameters and one formula (spec/forward.md).

Fields carry the names that config.json uses, so that reading a scaling is a matter of its fields.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from refquant.arrays import Float32, Float64
from refquant.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Rope(ABC):
    """A way to turn a position into rotations of `dim / 2` pairs of coordinates.

    Attributes:
        rope_theta: the base of the geometric series of frequencies.
        dim: how many coordinates of a head are rotated, from the first.
        max_position_embeddings: the length that the model is configured for.
    """

    rope_theta: float
    dim: int
    max_position_embeddings: int

    @abstractmethod
    def frequencies(self, length: int) -> Float64:
        """Radians per position of each pair, (dim / 2,), in a sequence whose last position is length − 1."""

    @property
    def amplitude(self) -> float:
        """The factor that cosines and sines are multiplied by."""
        return 1.0

    def geometric(self, base: float) -> Float64:
        """The unscaled series base^(−2i / dim)."""
        return np.power(base, -np.arange(0, self.dim, 2, dtype=np.float64) / self.dim)


@dataclass(frozen=True, kw_only=True)
class DefaultRope(Rope):
    """No scaling. Source: Su et al. 2021, arXiv:2104.09864."""

    def frequencies(self, length: int) -> Float64:
        return self.geometric(self.rope_theta)


@dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Position interpolation: every frequency over `factor`. Source: Chen et al. 2023, arXiv:2306.15595."""

    factor: float

    def frequencies(self, length: int) -> Float64:
        return self.geometric(self.rope_theta) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """NTK-aware scaling whose base grows with a sequence past the configured length.

    Source: transformers, modeling_rope_utils.py.
    """

    factor: float

    def frequencies(self, length: int) -> Float64:
        if self.dim == 2:
            raise ModelError("rope type 'dynamic' needs a rotary dimension above 2: its exponent is dim / (dim − 2)")
        stretch = max(length, self.max_position_embeddings) / self.max_position_embeddings
        growth = self.factor * stretch - (self.factor - 1)
        return self.geometric(self.rope_theta * growth ** (self.dim / (self.dim - 2)))


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Long wavelengths over `factor`, short ones kept, a ramp between. Source: Llama 3.1, transformers."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def frequencies(self, length: int) -> Float64:
        plain = self.geometric(self.rope_theta)
        turns = self.original_max_position_embeddings * plain / (2 * math.pi)  # over the original context
        kept = np.clip((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor), 0, 1)
        blended: Float64 = kept * plain + (1 - kept) * plain / self.factor
        return blended


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """Interpolate slow pairs, keep fast ones, and sharpen attention. Source: Peng et al. 2023, arXiv:2309.00071."""

    original_max_position_embeddings: int
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def scale(self) -> float:
        """How much longer the context has become."""
        return self.factor or self.max_position_embeddings / self.original_max_position_embeddings

    def frequencies(self, length: int) -> Float64:
        plain = self.geometric(self.rope_theta)
        low, high = self._pair_turning(self.beta_fast), self._pair_turning(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dim - 1)
        high += 0.001 if low == high else 0.0  # the ramp of transformers, which must not divide by zero
        ramp = np.clip((np.arange(self.dim // 2) - low) / (high - low), 0, 1)  # 0 keeps a pair, 1 interpolates it
        blended: Float64 = ramp * plain / self.scale + (1 - ramp) * plain
        return blended

    def _pair_turning(self, turns: float) -> float:
        """The fractional index of the pair that turns this often over the original context."""
        wavelength = self.original_max_position_embeddings / (2 * math.pi * turns)
        return self.dim * math.log(wavelength) / (2 * math.log(self.rope_theta))

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, weight: float) -> float:
        return 1.0 if self.scale <= 1 else 0.1 * weight * math.log(self.scale) + 1.0


@dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """A divisor for each pair, one set up to the original length and one past it.

    Source: Ding et al. 2024, arXiv:2402.13753; transformers.
    """

    original_max_position_embeddings: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    factor: float | None = None
    attention_factor: float | None = None

    def frequencies(self, length: int) -> Float64:
        past = length > self.original_max_position_embeddings
        divisors: Float64 = np.array(self.long_factor if past else self.short_factor, np.float64)
        return self.geometric(self.rope_theta) / divisors

    @property
    def amplitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        scale = self.factor or self.max_position_embeddings / self.original_max_position_embeddings
        if scale <= 1:
            return 1.0
        return math.sqrt(1 + math.log(scale) / math.log(self.original_max_position_embeddings))


@dataclass(frozen=True, kw_only=True)
class DividedRope(Rope):
    """A divisor for each pair, at every length: what a scaling has become in a GGUF's `rope_freqs.weight`."""

    divisors: tuple[float, ...]

    def frequencies(self, length: int) -> Float64:
        return self.geometric(self.rope_theta) / np.array(self.divisors, np.float64)


ROPES: dict[str, type[Rope]] = {
    "default": DefaultRope,
    "linear": LinearRope,
    "dynamic": DynamicRope,
    "llama3": Llama3Rope,
    "yarn": YarnRope,
    "longrope": LongRope,
}


@lru_cache(maxsize=8)
def rotations(rope: Rope, start: int, stop: int, length: int) -> tuple[Float32, Float32]:
    """Cosines and sines of positions start … stop − 1 in a sequence of this length; each (stop − start, dim / 2).

    Frequencies are rounded to float32 once, and the angle is the float32 product of position and frequency, as models
    were trained; its cosine and sine are taken in float64 and rounded once, so that no machine's libm shows.
    """
    frequencies = rope.frequencies(length).astype(np.float32)
    angles = np.arange(start, stop, dtype=np.float32)[:, None] * frequencies  # (tokens, dim / 2)
    wide = angles.astype(np.float64)
    cos, sin = (rope.amplitude * np.cos(wide)).astype(np.float32), (rope.amplitude * np.sin(wide)).astype(np.float32)
    cos.flags.writeable = sin.flags.writeable = False
    return cos, sin


def rotate(x: Float32, cos: Float32, sin: Float32, out: Float32) -> None:
    """Rotate each pair (x[i], x[i + dim / 2]) of the last axis; coordinates past `dim` are copied.

    Args:
        x: (batch, tokens, kv heads, group, head_dim).
        cos: (tokens, dim / 2).
        sin: (tokens, dim / 2).
        out: x's shape; may have other strides, must not overlap x.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None, None], sin[:, None, None]  # (tokens, 1, 1, dim / 2)
    x1, x2 = x[..., :half], x[..., half : 2 * half]
    np.multiply(x1, cos, out=out[..., :half])
    out[..., :half] -= x2 * sin
    np.multiply(x2, cos, out=out[..., half : 2 * half])
    out[..., half : 2 * half] += x1 * sin
    out[..., 2 * half :] = x[..., 2 * half :]
