"""Float formats as data, and their casts from and to float32 (spec/floats.md).

A format is a literal of a few facts; sizes, limits and both casts are derived from them. A code is the bit pattern
of one number, right-aligned in a uint8 (up to 8 bits) or a uint16.
"""

import math
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array, Float32, UInt8
from refquant.errors import RefquantError

Overflow: TypeAlias = Literal["ieee", "saturate"]
Rounding: TypeAlias = Literal["floor", "ceil", "nearest"]
UInt32: TypeAlias = npt.NDArray[np.uint32]

_FLOAT32_INF: Final = np.uint32(0x7F800000)
_FLOAT32_NAN: Final = np.uint32(0x7FC00000)


class Specials(Enum):
    """How infinities, NaN and zero are coded."""

    IEEE = "ieee"  # an all-ones exponent is an infinity (fraction 0) or NaN
    FN = "fn"  # finite: only the all-ones magnitude is NaN, of either sign
    FNUZ = "fnuz"  # finite, unsigned zero: the code of −0 is the only NaN
    NONE = "none"  # every code is a finite number
    E8M0 = "e8m0"  # powers of two: no sign, no zero, no subnormals; all ones is NaN


@dataclass(frozen=True)
class FloatFormat:
    """A binary float format.

    Attributes:
        name: lower case, the key in `FLOATS`.
        exponent_bits: width of the exponent field.
        mantissa_bits: width of the fraction field, without the hidden bit.
        bias: subtracted from the exponent field.
        specials: how infinities, NaN and zero are coded.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials = Specials.IEEE

    @property
    def signed(self) -> bool:
        """Whether the top bit is a sign."""
        return self.specials is not Specials.E8M0

    @property
    def bits(self) -> int:
        """Width of a code."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def code_dtype(self) -> np.dtype[np.unsignedinteger]:
        """What codes are kept in: uint8 up to 8 bits, else uint16; bits above the code are zero."""
        return np.dtype(np.uint8 if self.bits <= 8 else np.uint16)

    @property
    def has_infinity(self) -> bool:
        """Whether there are codes for ±infinity."""
        return self.specials is Specials.IEEE

    @property
    def has_nan(self) -> bool:
        """Whether there is a code for NaN."""
        return self.specials is not Specials.NONE

    @property
    def largest_code(self) -> int:
        """The code of the largest finite number."""
        all_ones = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        match self.specials:
            case Specials.IEEE:
                return all_ones - (1 << self.mantissa_bits)
            case Specials.FN | Specials.E8M0:
                return all_ones - 1
            case Specials.FNUZ | Specials.NONE:
                return all_ones

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return self._magnitude(self.largest_code)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with a hidden bit."""
        return self._magnitude(1 << self.mantissa_bits if self.signed else 0)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number; of E8M0, which has no subnormals, the smallest normal one."""
        return self._magnitude(1 if self.signed else 0)

    def _magnitude(self, code: int) -> float:
        """The number that a finite code without its sign bit means."""
        exponent, fraction = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if exponent == 0 and self.signed:
            return math.ldexp(fraction, 1 - self.bias - self.mantissa_bits)
        return math.ldexp(fraction + (1 << self.mantissa_bits), exponent - self.bias - self.mantissa_bits)

    @cached_property
    def _table(self) -> Float32:
        """The float32 value of every code."""
        magnitudes = np.array([self._magnitude(c) for c in range(self.largest_code + 1)], np.float32)
        table = np.empty(1 << self.bits, np.float32)
        half = len(table) // 2 if self.signed else len(table)
        table[:half] = np.nan
        table[: len(magnitudes)] = magnitudes
        if self.signed:
            table[half:] = -table[:half]
        if self.specials is Specials.IEEE:
            bits = table.view(np.uint32)  # the infinity, then NaNs that keep their fraction
            fractions = np.arange(1 << self.mantissa_bits, dtype=np.uint32) << np.uint32(23 - self.mantissa_bits)
            bits[self.largest_code + 1 : half] = _FLOAT32_INF | fractions
            bits[half + self.largest_code + 1 :] = np.uint32(0x80000000) | _FLOAT32_INF | fractions
        if self.specials is Specials.FNUZ:
            table[half] = np.nan
        table.flags.writeable = False
        return table

    def decode(self, codes: Array) -> Float32:
        """The numbers that codes mean; exact.

        Args:
            codes: `code_dtype`, any shape.

        Returns:
            float32 of the same shape. −0 and subnormals keep their bits. NaN keeps its sign, and in IEEE formats
            its fraction, moved to the top of float32's; the others give 0x7fc00000.

        Raises:
            RefquantError: another dtype, or a code wider than `bits`.

        Source: spec/floats.md.
        """
        shape, codes = np.shape(codes), np.atleast_1d(codes)
        if codes.dtype.newbyteorder("=") != self.code_dtype:
            raise RefquantError(f"{self.name}: codes of dtype {codes.dtype} given; they are {self.code_dtype}")
        if self.bits < 8 * codes.itemsize and codes.size and int(codes.max()) >= 1 << self.bits:
            raise RefquantError(f"{self.name}: code {codes.max():#x} given; a code has {self.bits} bits")
        if self == BF16:  # the upper half of a float32
            values = np.left_shift(codes, 16, dtype=np.uint32).view(np.float32)
        elif self == FP16:
            values = _widen_half(codes.astype(np.uint16, copy=False))
        else:
            values = self._table[codes]
        return values.reshape(shape)

    def encode(self, x: npt.ArrayLike, *, overflow: Overflow = "ieee") -> npt.NDArray[np.unsignedinteger]:
        """Round to the nearest number of the format, ties to the even code; one rounding, in integers.

        Args:
            x: float32 of any shape; float16 widens exactly.
            overflow: what a number becomes that rounds past the largest, infinities included. "ieee": an
                infinity, or NaN where the format has none. "saturate": the largest number.

        Returns:
            Codes of `code_dtype`, of x's shape. −0 is kept, and becomes 0 where the format has no −0; subnormals
            are exact. NaN keeps its sign, and in IEEE formats the top of its fraction, so that encoding what
            `decode` gave returns every code.

        Raises:
            RefquantError: float64 (it would be rounded twice) or another dtype; a NaN, or with overflow="ieee" a
                number past the largest, in a format that has no code for it; E8M0, whose rounding must be named
                (`encode_e8m0`).

        Source: spec/floats.md.
        """
        if not self.signed:
            raise RefquantError(f"{self.name}: the rounding rule must be named: use encode_e8m0(x, rounding=…)")
        _check_choice(self.name, "overflow", overflow, get_args(Overflow))
        values = _as_float32(x, self.name)
        bits = values.view(np.uint32)
        magnitude = bits & np.uint32(0x7FFFFFFF)
        nan = magnitude > _FLOAT32_INF
        code = self._round(magnitude)
        past = (code > self.largest_code) & ~nan
        if past.any():
            code[past] = self._past_the_largest(overflow, values, past)
        code |= (bits >> np.uint32(31)) << np.uint32(self.bits - 1)
        if self.specials is Specials.FNUZ:
            code[code == 1 << (self.bits - 1)] = 0  # −0 would be NaN
            if overflow == "ieee":
                code[past] = 1 << (self.bits - 1)
        if nan.any():
            code[nan] = self._nan(bits[nan], values, nan)
        return code.astype(self.code_dtype).reshape(np.shape(x))

    def _round(self, magnitude: UInt32) -> UInt32:
        """Codes of magnitudes as if there were no largest one; anything for NaN."""
        exponent = (magnitude >> np.uint32(23)).astype(np.int32)
        significand = magnitude & np.uint32(0x7FFFFF)
        significand |= (exponent > 0).astype(np.uint32) << np.uint32(23)
        # The magnitude is significand · 2^(max(exponent, 1) − 150). The code's exponent field, were it unbounded:
        field = np.maximum(exponent, 1) - (127 - self.bias)
        # Below field 1 numbers are subnormal: each step down drops one more bit. 25 drops all, with the rounding bit.
        shift = np.minimum(23 - self.mantissa_bits + np.maximum(1 - field, 0), 25).astype(np.uint32)
        kept = significand >> shift
        # Half a unit less one, plus one for an odd code, carries exactly when nearest-even rounds up.
        significand += (np.uint32(1) << (shift - np.uint32(1))) - np.uint32(1) + (kept & np.uint32(1))
        below: UInt32 = np.maximum(field - 1, 0).astype(np.uint32) << np.uint32(self.mantissa_bits)
        below += significand >> shift  # the hidden bit, and a carry, count up the exponent field
        return below

    def _past_the_largest(self, overflow: Overflow, values: Float32, past: npt.NDArray[np.bool_]) -> int:
        if overflow == "saturate":
            return self.largest_code
        if self.specials is Specials.NONE:
            raise RefquantError(
                f"{self.name}: {_first(values, past)} is past the largest number {self.largest:g}, and there is "
                "neither infinity nor NaN: clip first or use overflow='saturate'"
            )
        return self.largest_code + 1  # the infinity of IEEE, the NaN of FN; FNUZ sets its own after the sign

    def _nan(self, bits: UInt32, values: Float32, nan: npt.NDArray[np.bool_]) -> UInt32:
        """Codes of NaNs, from their float32 bits."""
        sign = (bits >> np.uint32(31)) << np.uint32(self.bits - 1)
        match self.specials:
            case Specials.IEEE:
                fraction = (bits & np.uint32(0x7FFFFF)) >> np.uint32(23 - self.mantissa_bits)
                fraction[fraction == 0] = 1 << (self.mantissa_bits - 1)  # else it would be an infinity
                return sign | np.uint32(self.largest_code + 1) | fraction
            case Specials.FN:
                return sign | np.uint32(self.largest_code + 1)
            case Specials.FNUZ:
                return np.full_like(bits, 1 << (self.bits - 1))
            case _:
                raise RefquantError(f"{self.name}: {_first(values, nan)} given; the format has no NaN")


def encode_e8m0(x: npt.ArrayLike, *, rounding: Rounding, overflow: Overflow = "ieee") -> UInt8:
    """Round positive numbers to powers of two; one rounding, in integers.

    Args:
        x: float32 of any shape; float16 widens exactly.
        rounding: "floor" to the power of two at or below; "ceil" at or above; "nearest" in value with ties
            (1.5 · 2^k) upwards, except that all numbers between 2^−127 and 2^−126 go up, as in torch and ml_dtypes.
        overflow: what a number becomes that rounds past 2^127, infinity included: NaN ("ieee") or 2^127
            ("saturate").

    Returns:
        uint8 codes of x's shape: code c means 2^(c − 127). Numbers below 2^−127 become 2^−127 under every rule,
        since there is nothing below it; NaN becomes 0xff.

    Raises:
        RefquantError: zero or a negative number, which have no code; float64 or another dtype.

    Source: spec/floats.md; OCP Microscaling Formats (MX) v1.0, section 5.4.1.
    """
    _check_choice("e8m0", "rounding", rounding, get_args(Rounding))
    _check_choice("e8m0", "overflow", overflow, get_args(Overflow))
    values = _as_float32(x, "e8m0")
    if (values <= 0).any():
        raise RefquantError(f"e8m0: {_first(values, values <= 0)} given; every number must be above zero")
    with np.errstate(invalid="ignore"):  # a signalling NaN
        half, exponent = np.frexp(values)  # exactly half · 2^exponent, with half in [0.5, 1), subnormals too
    code = exponent + (E8M0.bias - 1)  # the power of two at or below
    match rounding:
        case "floor":
            up = np.zeros(code.shape, np.bool_)
        case "ceil":
            up = half > 0.5
        case "nearest":
            up = (half >= 0.75) | ((code == 0) & (half > 0.5))
    code = np.maximum(code + up, 0)
    past = np.isinf(values) | (code > E8M0.largest_code)
    code[past] = E8M0.largest_code if overflow == "saturate" else 0xFF
    code[np.isnan(values)] = 0xFF
    codes: UInt8 = code.astype(np.uint8)
    return codes.reshape(np.shape(x))


def _widen_half(codes: npt.NDArray[np.uint16]) -> Float32:
    """IEEE binary16 to float32 by the machine's conversion, except NaN, which machines quiet or do not."""
    with np.errstate(invalid="ignore"):
        values = codes.view(np.float16).astype(np.float32)
    nan = np.isnan(values)
    if nan.any():
        bits = codes[nan].astype(np.uint32)
        sign, fraction = (bits & np.uint32(0x8000)) << np.uint32(16), (bits & np.uint32(0x3FF)) << np.uint32(13)
        values.view(np.uint32)[nan] = sign | _FLOAT32_INF | fraction
    return values


def _as_float32(x: npt.ArrayLike, name: str) -> Float32:
    """The caller's numbers as native, contiguous float32 of at least one axis."""
    array = np.asarray(x)
    if array.dtype.kind != "f" or array.dtype.itemsize > 4:
        raise RefquantError(
            f"{name}: dtype {array.dtype} given; codes are made from float32 or float16 (float64 would round twice)"
        )
    return np.atleast_1d(np.ascontiguousarray(array, dtype=np.float32))


def _first(values: Float32, where: npt.NDArray[np.bool_]) -> str:
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(where)), where.shape))
    return f"{values[index]:.9g} at index {index}"


def _check_choice(name: str, what: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise RefquantError(f"{name}: {what} {given!r} given; it is one of {', '.join(known)}")


FP16: Final = FloatFormat("fp16", exponent_bits=5, mantissa_bits=10, bias=15)
BF16: Final = FloatFormat("bf16", exponent_bits=8, mantissa_bits=7, bias=127)
E4M3: Final = FloatFormat("e4m3", exponent_bits=4, mantissa_bits=3, bias=7, specials=Specials.FN)
E5M2: Final = FloatFormat("e5m2", exponent_bits=5, mantissa_bits=2, bias=15)
E4M3FNUZ: Final = FloatFormat("e4m3fnuz", exponent_bits=4, mantissa_bits=3, bias=8, specials=Specials.FNUZ)
E5M2FNUZ: Final = FloatFormat("e5m2fnuz", exponent_bits=5, mantissa_bits=2, bias=16, specials=Specials.FNUZ)
E3M2: Final = FloatFormat("e3m2", exponent_bits=3, mantissa_bits=2, bias=3, specials=Specials.NONE)
E2M3: Final = FloatFormat("e2m3", exponent_bits=2, mantissa_bits=3, bias=1, specials=Specials.NONE)
E2M1: Final = FloatFormat("e2m1", exponent_bits=2, mantissa_bits=1, bias=1, specials=Specials.NONE)
E8M0: Final = FloatFormat("e8m0", exponent_bits=8, mantissa_bits=0, bias=127, specials=Specials.E8M0)

FLOATS: Final[dict[str, FloatFormat]] = {
    f.name: f for f in (FP16, BF16, E4M3, E5M2, E4M3FNUZ, E5M2FNUZ, E3M2, E2M3, E2M1, E8M0)
}
