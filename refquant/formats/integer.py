"""Integers int2 … int8: round to nearest on an even grid, symmetric or with a zero point (spec/integer.md)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refquant.arrays import Array, Float32, Shape
from refquant.errors import RefquantError
from refquant.formats.base import Format, Option, Parts, Stored
from refquant.formats.registry import register
from refquant.formats.scales import SCALE_DTYPES, ScaleDtype, load_scales, store_scales
from refquant.packing import pack, packed_length, unpack


@dataclass(frozen=True)
class Integer(Format):
    """An integer format: w ≈ (code − zero) · scale, one scale for a group of weights.

    Attributes:
        bits: 2 … 8.
        group_size: weights along the last axis that share a scale, the last group of a row being shorter where the
            row ends; −1 for a whole row, None for the whole tensor.
        symmetric: codes ±(2^(bits−1) − 1) around zero; otherwise codes 0 … 2^bits − 1 around a stored zero point.
        scale_dtype: "float32", "float16" or "bfloat16"; codes are computed with the scale as stored.
    """

    bits: int
    group_size: int | None = None
    symmetric: bool = True
    scale_dtype: ScaleDtype = "float32"

    options = (
        Option("group_size", "g#"),
        Option("group_size", "row", -1),
        Option("symmetric", "asym", False),
        Option("scale_dtype", "f16", "float16"),
        Option("scale_dtype", "bf16", "bfloat16"),
    )

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise RefquantError(f"integer format: bits = {self.bits} given; 2 … 8 exist")
        size = self.group_size
        if size is not None and (type(size) is not int or (size < 1 and size != -1)):
            raise RefquantError(
                f"{self.name}: group_size = {size!r} given; a positive number of weights, −1 for a row, or None"
            )
        if self.scale_dtype not in SCALE_DTYPES:
            raise RefquantError(f"{self.name}: scale_dtype = {self.scale_dtype!r} given; one of {list(SCALE_DTYPES)}")

    @property
    def name(self) -> str:
        return f"int{self.bits}"

    @property
    def block_size(self) -> int | None:
        return self.group_size if self.group_size and self.group_size > 0 else None

    @property
    def bits_per_weight(self) -> float:
        overhead = SCALE_DTYPES[self.scale_dtype].itemsize * 8 + (0 if self.symmetric else self.bits)
        return self.bits + (overhead / self.block_size if self.block_size else 0)

    @property
    def largest_code(self) -> int:
        """The code of the largest weight: steps from zero to the end of the range, or from end to end."""
        return (1 << self.bits - 1) - 1 if self.symmetric else (1 << self.bits) - 1

    def layout(self, shape: Shape) -> dict[str, Stored]:
        lead, n = shape[:-1], shape[-1]
        groups = (1,) if self.group_size is None else (*lead, _groups_in_row(n, self.group_size))
        stored = {
            "codes": Stored(np.dtype(np.uint8), (*lead, packed_length(n, self.bits))),
            "scales": Stored(SCALE_DTYPES[self.scale_dtype], groups),
        }
        if not self.symmetric:
            zeros = (*groups[:-1], packed_length(groups[-1], self.bits))
            stored["zeros"] = Stored(np.dtype(np.uint8), zeros)
        return stored

    def encode(self, w: Float32) -> Parts:
        groups = self._grouped(w)  # (rows, groups, width)
        # `initial=0`: the range always includes zero, so a one-sided group keeps an exact zero, and the zeros that fill
        # a short group change nothing.
        if self.symmetric:
            low, high = np.zeros((), np.float32), np.abs(groups).max(axis=-1, keepdims=True, initial=0)
        else:
            low = groups.min(axis=-1, keepdims=True, initial=0)
            high = groups.max(axis=-1, keepdims=True, initial=0)
        with np.errstate(over="ignore"):  # an infinite scale is refused when it is stored
            scales = store_scales((high - low) / np.float32(self.largest_code), self.scale_dtype, self.largest_code)
        step = load_scales(scales, self.scale_dtype)  # (rows, groups, 1)
        codes = np.rint(_steps(groups, step))
        stored = self.layout(w.shape)["scales"].shape
        parts: Parts = {}
        if self.symmetric:
            codes = codes.clip(-self.largest_code, self.largest_code)
            unsigned = codes.astype(np.int8).view(np.uint8) & np.uint8((1 << self.bits) - 1)  # two's complement
        else:
            zero = np.rint(_steps(-low, step)).clip(0, self.largest_code)
            unsigned = (codes + zero).clip(0, self.largest_code).astype(np.uint8)
            parts["zeros"] = pack(zero.astype(np.uint8).reshape(stored), self.bits)
        parts["scales"] = scales.reshape(stored)
        parts["codes"] = pack(_ungrouped(unsigned, w.shape), self.bits)
        return parts

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        codes = unpack(parts["codes"], self.bits, shape[-1])
        step = load_scales(parts["scales"], self.scale_dtype)
        if self.symmetric:
            spare = 8 - self.bits
            values = ((codes << spare).view(np.int8) >> spare).astype(np.float32)  # the sign bit, extended
            groups = self._grouped(values)  # (rows, groups, width)
        else:
            zero = unpack(parts["zeros"], self.bits, step.shape[-1]).astype(np.float32)
            groups = self._grouped(codes.astype(np.float32))
            groups = groups - zero.reshape(*groups.shape[:2], 1)
        return _ungrouped(groups * step.reshape(*groups.shape[:2], 1), shape)

    def _grouped(self, w: Array) -> Array:
        """(..., n) as (rows, groups, width), zeros filling a short last group; the whole tensor is one row's group."""
        if self.group_size is None:
            return w.reshape(1, 1, w.size)
        n = w.shape[-1]
        count = _groups_in_row(n, self.group_size)
        width = n if self.group_size == -1 else min(self.group_size, n)
        rows = math.prod(w.shape[:-1])
        if count * width == n:
            return w.reshape(rows, count, width)
        padded = np.zeros((rows, count * width), w.dtype)
        padded[:, :n] = w.reshape(rows, n)
        return padded.reshape(rows, count, width)


def _groups_in_row(n: int, group_size: int) -> int:
    return 1 if group_size == -1 else -(-n // group_size)


def _ungrouped(groups: Array, shape: Shape) -> Array:
    """(rows, groups, width) as the tensor's shape, without what filled a short last group."""
    if groups.size == math.prod(shape):
        return groups.reshape(shape)
    rows = math.prod(shape[:-1])
    return np.ascontiguousarray(groups.reshape(rows, -1)[:, : shape[-1]]).reshape(shape)


def _steps(w: Float32, step: Float32) -> Float32:
    """w in units of step; 0 where the step is zero, which it is where every weight is, or where it underflowed."""
    return np.divide(w, step, out=np.zeros(w.shape, np.float32), where=step != 0)


register(*(Integer(bits) for bits in range(2, 9)))
