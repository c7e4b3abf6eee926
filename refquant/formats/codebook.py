"""Code books of bitsandbytes: nf4, fp4 and int8-dynamic, with double quantization (spec/codebook.md).

A tensor is flattened and cut into blocks; a block's largest magnitude is its scale, and a code is an index into a
table of values in [−1, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array, Float32, Shape, UInt8
from refquant.errors import RefquantError, ScaleOverflowError, unknown_name
from refquant.formats.base import Format, Option, Parts, Stored
from refquant.formats.blocks import absmax_of, as_blocks, in_slices, scale_blocks
from refquant.formats.cascade_sum import mean
from refquant.formats.dynamic8 import dequantize_dynamic8, quantize_dynamic8
from refquant.formats.registry import register
from refquant.formats.tables import load_table

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK_SIZE = 256

# What an absmax is raised to before weights are divided by it: 1e-38 is a subnormal, 0x006ce3ee.
_LEAST_DIVISOR = np.float32(1e-38)

_UINT8 = np.dtype(np.uint8)
_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True)
class CodeBook(Format):
    """A table of values in [−1, 1], and blocks of weights that share an absmax.

    Attributes:
        block_size: weights of the flattened tensor that share an absmax, one of BLOCK_SIZES.
    """

    block_size: int

    options: ClassVar[tuple[Option, ...]] = (Option("block_size", "b#"),)

    def __post_init__(self) -> None:
        if not isinstance(self.block_size, int) or self.block_size not in BLOCK_SIZES:
            raise RefquantError(f"{self.name}: block_size = {self.block_size!r} given; one of {list(BLOCK_SIZES)}")

    def _blocks(self, shape: Shape) -> int:
        return -(-math.prod(shape) // self.block_size)


@dataclass(frozen=True)
class FourBit(CodeBook):
    """Two codes a byte, the first weight in the high nibble.

    Attributes:
        table: "nf4" or "fp4", which is the format's name too.
        double_quant: store the block maxima as 8-bit dynamic codes of their difference from their mean.
    """

    block_size: int = 64
    table: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = False

    options = (*CodeBook.options, Option("double_quant", "dq", True))

    def __post_init__(self) -> None:
        if self.table not in ("nf4", "fp4"):
            raise unknown_name("4-bit table", self.table, ("nf4", "fp4"))
        super().__post_init__()

    @property
    def name(self) -> str:
        return self.table

    @property
    def bits_per_weight(self) -> float:
        scale_bits = 8 + 32 / NESTED_BLOCK_SIZE if self.double_quant else 32
        return 4 + scale_bits / self.block_size

    def layout(self, shape: Shape) -> dict[str, Stored]:
        blocks = self._blocks(shape)
        codes = Stored(_UINT8, (-(-math.prod(shape) // 2),))
        if not self.double_quant:
            return {"codes": codes, "absmax": Stored(_FLOAT32, (blocks,))}
        return {
            "codes": codes,
            "absmax": Stored(_UINT8, (blocks,)),
            "nested_absmax": Stored(_FLOAT32, (-(-blocks // NESTED_BLOCK_SIZE),)),
            "nested_offset": Stored(_FLOAT32, (1,)),
        }

    def encode(self, w: Float32) -> Parts:
        blocks = as_blocks(w.reshape(-1), self.block_size)  # (blocks, block_size)
        ends_short = w.size % self.block_size != 0
        absmax = absmax_of(blocks)  # Q1
        if ends_short:
            absmax[-1] = max(absmax[-1], _LEAST_DIVISOR)  # Q2
        inverse = np.reciprocal(np.maximum(absmax, _LEAST_DIVISOR))[:, None]  # Q3
        nearest = np.empty(blocks.shape, np.uint8)
        for some in in_slices(blocks):
            nearest[some] = _nearest(blocks[some] * inverse[some], self.table)  # Q4, Q6
        if ends_short:
            nearest[-1] = _nearest(blocks[-1] / absmax[-1], self.table)  # Q5, Q6
        codes = nearest.reshape(-1)[: w.size + w.size % 2]  # an odd count is followed by the code of a zero
        packed = (codes[::2] << np.uint8(4)) | codes[1::2]
        return {"codes": packed} | (_double_quantized(absmax) if self.double_quant else {"absmax": absmax})

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        values = _pairs(self.table)[parts["codes"]].view(np.float32)[: math.prod(shape)]
        absmax = _double_dequantized(parts) if self.double_quant else parts["absmax"]
        return scale_blocks(values, absmax, self.block_size).reshape(shape)


@dataclass(frozen=True)
class Int8Dynamic(CodeBook):
    """A byte a weight, an index into the signed 8-bit dynamic map."""

    block_size: int = 4096

    @property
    def name(self) -> str:
        return "int8-dynamic"

    @property
    def bits_per_weight(self) -> float:
        return 8 + 32 / self.block_size

    def layout(self, shape: Shape) -> dict[str, Stored]:
        return {"codes": Stored(_UINT8, (math.prod(shape),)), "absmax": Stored(_FLOAT32, (self._blocks(shape),))}

    def encode(self, w: Float32) -> Parts:
        codes, absmax = quantize_dynamic8(w.reshape(-1), self.block_size)
        return {"codes": codes, "absmax": absmax}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        return dequantize_dynamic8(parts["codes"], parts["absmax"], self.block_size).reshape(shape)


@cache
def _sorted(name: str) -> tuple[Float32, UInt8]:
    """The midpoints of neighbouring values, ascending, and the codes in the order of their values, −0 after 0."""
    table = load_table(name)
    order = np.argsort(table, kind="stable")
    values = table[order]
    return (values[:-1] + values[1:]) / np.float32(2), order.astype(np.uint8)


def _nearest(unit: Float32, name: str) -> UInt8:
    """The code nearest to each number, the lower value at a midpoint: as many midpoints lie strictly below."""
    midpoints, order = _sorted(name)
    rank = np.zeros(unit.shape, np.uint8)
    for midpoint in midpoints:  # fifteen comparisons of whole arrays are faster than a search for each number
        rank += unit > midpoint
    return order[rank]


@cache
def _pairs(name: str) -> npt.NDArray[np.uint64]:
    """The two float32 that each byte stands for, the high nibble's first, as one 64-bit word: (256,)."""
    table = load_table(name)
    byte = np.arange(256)
    return np.stack([table[byte >> 4], table[byte & 15]], axis=-1).view(np.uint64).reshape(-1)


def _double_quantized(absmax: Float32) -> Parts:
    with np.errstate(over="ignore"):  # an infinite sum is reported below
        offset = mean(absmax) if absmax.size else np.float32(0)  # N1
    if not np.isfinite(offset):
        raise ScaleOverflowError(
            f"the maxima of {absmax.size} blocks add up to more than float32 holds ({np.finfo(np.float32).max:.9g}), "
            "so double quantization has no mean to subtract: leave out dq, or scale the weights down"
        )
    codes, nested_absmax = quantize_dynamic8(absmax - offset, NESTED_BLOCK_SIZE)  # N2, N3
    return {"absmax": codes, "nested_absmax": nested_absmax, "nested_offset": np.array([offset])}


def _double_dequantized(parts: Mapping[str, Array]) -> Float32:
    differences = dequantize_dynamic8(parts["absmax"], parts["nested_absmax"], NESTED_BLOCK_SIZE)
    return differences + parts["nested_offset"]


register(FourBit(table="nf4"), FourBit(table="fp4"), Int8Dynamic())
