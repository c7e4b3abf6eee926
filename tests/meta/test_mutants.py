"""Planted faults: each is a bug that a released quantizer has had, and the properties must notice every one.

The other way round, a property that a format is excepted from must be false for it.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import Phase, given, settings

from refquant import get_format
from refquant.conformance.guarantees import exceptions
from refquant.conformance.properties import PROPERTIES
from refquant.formats.codebook import FourBit
from refquant.formats.integer import Integer
from refquant.packing import pack, unpack


def breaks(fmt, statement, examples=100):
    @settings(max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    @given(statement.draw(fmt))
    def check(drawn):
        statement.check(fmt, drawn)

    try:
        check()
    except AssertionError:
        return True
    return False


def noticed_by(fmt):
    """The first property that the format breaks, or None."""
    held = [p for p in PROPERTIES if p.holds_for(fmt)]
    return next((p.name for examples in (100, 1500) for p in held if breaks(fmt, p, examples)), None)


@dataclass(frozen=True)
class TiesAwayFromZero(Integer):
    def encode(self, w):
        parts = super().encode(w)
        with np.errstate(all="ignore"):
            steps = np.nan_to_num(w / parts["scales"], posinf=0, neginf=0)
        away = np.trunc(steps + np.copysign(np.float32(0.5), steps)).clip(-self.largest_code, self.largest_code)
        return parts | {"codes": pack(away.astype(np.int8).view(np.uint8) & np.uint8((1 << self.bits) - 1), self.bits)}


@dataclass(frozen=True)
class ReciprocalMultiply(Integer):
    def encode(self, w):
        parts = super().encode(w)
        with np.errstate(all="ignore"):
            steps = np.nan_to_num(w * (np.float32(1) / parts["scales"]), posinf=0, neginf=0)
        codes = np.rint(steps).clip(-self.largest_code, self.largest_code)
        return parts | {"codes": pack(codes.astype(np.int8).view(np.uint8) & np.uint8((1 << self.bits) - 1), self.bits)}


@dataclass(frozen=True)
class NibblesSwappedWhenRead(Integer):
    def decode(self, parts, shape):
        codes = parts["codes"]
        return super().decode({**parts, "codes": codes >> np.uint8(4) | codes << np.uint8(4)}, shape)


@dataclass(frozen=True)
class NibblesSwappedBothWays(NibblesSwappedWhenRead):
    def encode(self, w):
        parts = super().encode(w)
        return parts | {"codes": parts["codes"] >> np.uint8(4) | parts["codes"] << np.uint8(4)}


@dataclass(frozen=True)
class MinusZero(Integer):
    def decode(self, parts, shape):
        decoded = super().decode(parts, shape)
        return np.where(decoded == 0, np.float32(-0.0), decoded)


@dataclass(frozen=True)
class FirstScaleForAll(Integer):
    def decode(self, parts, shape):
        scales = parts["scales"]
        return super().decode({**parts, "scales": np.broadcast_to(scales[..., :1], scales.shape)}, shape)


@dataclass(frozen=True)
class ZeroPointOffByOne(Integer):
    def decode(self, parts, shape):
        groups = parts["scales"].shape[-1]
        zeros = unpack(parts["zeros"], self.bits, groups) + np.uint8(1)
        return super().decode({**parts, "zeros": pack(zeros & np.uint8((1 << self.bits) - 1), self.bits)}, shape)


@dataclass(frozen=True)
class RangeWithoutZero(Integer):
    def encode(self, w):
        parts = super().encode(w)
        if w.size and w.min() > 0:
            low, high = w.min(), w.max()
            step = (high - low) / np.float32(self.largest_code) or np.float32(1)
            codes = np.rint((w - low) / step).clip(0, self.largest_code).astype(np.uint8)
            parts |= {"codes": pack(codes, self.bits), "scales": np.full(parts["scales"].shape, step, np.float32)}
        return parts


@dataclass(frozen=True)
class ScaleOfTheNeighbour(Integer):
    def encode(self, w):
        spread = np.maximum(np.abs(w), np.abs(np.roll(w, 1, axis=-1)))  # a window that looks one weight too far
        return super().encode(w) | {"scales": super().encode(spread)["scales"]}


@dataclass(frozen=True)
class CastBeforeClip(Integer):
    def encode(self, w):
        parts = super().encode(w)
        with np.errstate(all="ignore"):
            steps = np.nan_to_num(w / parts["scales"], posinf=0, neginf=0)
        codes = np.rint(steps).astype(np.int64) + parts["zeros"]
        return parts | {"codes": codes.astype(np.uint8)}  # 256 becomes 0


@dataclass(frozen=True)
class SubnormalScalesFlushed(Integer):
    def decode(self, parts, shape):
        scales = parts["scales"]
        flushed = np.where(np.abs(scales) < np.finfo(scales.dtype).tiny, scales.dtype.type(0), scales)
        return super().decode({**parts, "scales": flushed}, shape)


@dataclass(frozen=True)
class WritesToItsInput(Integer):
    def encode(self, w):
        parts = super().encode(w)
        w[w < 0] = 0
        return parts


@dataclass(frozen=True)
class ShortTailForgotten(Integer):
    def encode(self, w):
        parts = super().encode(w)
        if self.group_size and w.shape[-1] % self.group_size and w.shape[-1] > self.group_size:
            parts["scales"] = parts["scales"].copy()
            parts["scales"][..., -1] = parts["scales"][..., -2]
        return parts


@dataclass(frozen=True)
class LowNibbleFirst(FourBit):
    def decode(self, parts, shape):
        codes = parts["codes"]
        return super().decode({**parts, "codes": codes >> np.uint8(4) | codes << np.uint8(4)}, shape)


@dataclass(frozen=True)
class OffsetLost(FourBit):
    def decode(self, parts, shape):
        return super().decode({**parts, "nested_offset": np.zeros(1, np.float32)}, shape)


MUTANTS = [
    TiesAwayFromZero(4, -1),
    ReciprocalMultiply(8, -1),
    NibblesSwappedWhenRead(4, 32),
    NibblesSwappedBothWays(4, 32),
    MinusZero(3),
    FirstScaleForAll(5, 8),
    ZeroPointOffByOne(4, 8, symmetric=False),
    RangeWithoutZero(8, symmetric=False),
    ScaleOfTheNeighbour(4, 8),
    CastBeforeClip(8, -1, symmetric=False),
    SubnormalScalesFlushed(4, 8, scale_dtype="float16"),
    WritesToItsInput(4),
    ShortTailForgotten(4, 8),
    LowNibbleFirst(table="nf4"),
    OffsetLost(table="fp4", double_quant=True),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: type(m).__name__)
def test_a_planted_fault_is_noticed(mutant):
    assert noticed_by(mutant) is not None


EXCEPTED = [
    (scheme, p)
    for scheme in ("int4", "int4-g8-asym", "nf4-b32", "nf4-b32-dq", "int8-dynamic-b32", "llm-int8")
    for p in PROPERTIES
    if p.name in exceptions(get_format(scheme))
] + [
    (scheme, p)  # of ggml's types the exceptions that their searches cannot make rare
    for scheme in ("q1_0", "q4_1", "q3_k", "q4_k", "iq2_s", "iq3_xxs", "iq4_nl")
    for p in PROPERTIES
    if p.name in ("zero_stays_zero", "negating_the_input_negates_the_output")
    and p.name in exceptions(get_format(scheme))
]


@pytest.mark.parametrize(("scheme", "statement"), EXCEPTED, ids=[f"{s}-{p.name}" for s, p in EXCEPTED])
def test_what_a_format_is_excepted_from_it_really_breaks(scheme, statement):
    assert breaks(get_format(scheme), statement, examples=2000)  # some break in the order of a sum alone
