"""Every code, every midpoint and its float32 neighbours, against a slow definition in exact rationals."""

import math
from bisect import bisect_left
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.errors import RefquantError
from refquant.floats import BF16, E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, E8M0, FLOATS, FP16, FloatFormat, encode_e8m0

SIGNED = [f for f in FLOATS.values() if f is not E8M0]
FNUZ = (E4M3FNUZ, E5M2FNUZ)
INF, NAN = "inf", "nan"

# From the standards: IEEE 754 binary16; OCP 8-bit floating point v1.0, table 1; OCP Microscaling Formats v1.0, tables
# 2 to 5; Graphcore, AMD and Qualcomm's FP8 (arXiv:2206.02915) for FNUZ.
LIMITS = {
    "fp16": (16, 65504.0, 2.0**-14, 2.0**-24),
    "bf16": (16, 255 * 2.0**120, 2.0**-126, 2.0**-133),
    "e4m3": (8, 448.0, 2.0**-6, 2.0**-9),
    "e5m2": (8, 57344.0, 2.0**-14, 2.0**-16),
    "e4m3fnuz": (8, 240.0, 2.0**-7, 2.0**-10),
    "e5m2fnuz": (8, 57344.0, 2.0**-15, 2.0**-17),
    "e3m2": (6, 28.0, 0.25, 0.0625),
    "e2m3": (6, 7.5, 1.0, 0.125),
    "e2m1": (4, 6.0, 1.0, 0.5),
    "e8m0": (8, 2.0**127, 2.0**-127, 2.0**-127),
}
NANS = {
    "fp16": {*range(0x7C01, 0x8000), *range(0xFC01, 0x10000)},
    "bf16": {*range(0x7F81, 0x8000), *range(0xFF81, 0x10000)},
    "e4m3": {0x7F, 0xFF},
    "e5m2": {0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF},
    "e4m3fnuz": {0x80},
    "e5m2fnuz": {0x80},
    "e8m0": {0xFF},
}
INFINITIES = {"fp16": {0x7C00, 0xFC00}, "bf16": {0x7F80, 0xFF80}, "e5m2": {0x7C, 0xFC}}


def slow_decode(fmt: FloatFormat, code: int) -> Fraction | str:
    """The value of a code; of −0, zero."""
    if code in NANS.get(fmt.name, ()):
        return NAN
    if code in INFINITIES.get(fmt.name, ()):
        return INF
    if fmt is E8M0:
        return Fraction(2) ** (code - 127)
    text = f"{code:0{fmt.bits}b}"
    exponent = int(text[1 : 1 + fmt.exponent_bits], 2)
    fraction = Fraction(int(text[1 + fmt.exponent_bits :], 2), 2**fmt.mantissa_bits)
    value = (
        (1 + fraction) * Fraction(2) ** (exponent - fmt.bias) if exponent else fraction * Fraction(2) ** (1 - fmt.bias)
    )
    return -value if text[0] == "1" else value


@cache
def decoded(fmt: FloatFormat) -> list[Fraction | str]:
    """The value of every code."""
    return [slow_decode(fmt, code) for code in range(1 << fmt.bits)]


@cache
def magnitudes(fmt: FloatFormat) -> list[Fraction]:
    """The numbers from the smallest up, so that an index is a code, and last the one that would follow the largest."""
    codes = decoded(fmt)[: 1 << (fmt.bits - fmt.signed)]
    values = [v for v in codes if isinstance(v, Fraction)]
    return [*values, values[-1] * 2 if fmt is E8M0 else values[-1] + (values[-1] - values[-2])]


def slow_encode(fmt: FloatFormat, x: float, saturate: bool) -> int | None:
    """The code of a float32, or None where the format has none."""
    sign = 1 << (fmt.bits - 1) if math.copysign(1, x) < 0 else 0
    top = len(magnitudes(fmt)) - 2
    if math.isinf(x):
        code = top + 1
    else:
        values, v = magnitudes(fmt), abs(Fraction(x))
        code = min(bisect_left(values, v), top + 1)  # the first number at or above
        if code and v < values[code]:
            below, above = v - values[code - 1], values[code] - v
            code -= below < above or (below == above and (code - 1) % 2 == 0)
    if code > top:
        past = past_the_largest(fmt, saturate)
        return past if past is None or past == 0x80 else sign | past
    return 0 if code == 0 and fmt in FNUZ else sign | code


def past_the_largest(fmt: FloatFormat, saturate: bool) -> int | None:
    """The code, without its sign, of what rounds past the largest number, or None."""
    top = len(magnitudes(fmt)) - 2
    if saturate:
        return top
    if fmt.name in INFINITIES or fmt is E4M3:
        return top + 1  # the infinity of one, the NaN of the other
    return 0x80 if fmt in FNUZ else None


def all_codes(fmt: FloatFormat) -> np.ndarray:
    return np.arange(1 << fmt.bits, dtype=fmt.code_dtype)


def neighbourhood(fmt: FloatFormat) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, midpoints of neighbours, the float32 on either side of each, and the codes that all these round to.

    One past the largest code stands for everything that rounds past the largest number.
    """
    values = np.array([float(v) for v in magnitudes(fmt)])
    middles = (values[:-1] + values[1:]) / 2  # exact in float64, and in float32 as the next line asserts
    numbers, middles = values[:-1].astype(np.float32), middles.astype(np.float32)
    assert (middles.astype(np.float64) * 2 == values[:-1] + values[1:]).all()
    below = np.arange(len(numbers))
    x = np.concatenate([numbers, up(numbers), down(numbers[1:]), middles, up(middles), down(middles)])
    codes = [below, below, below[1:], below + below % 2, below + 1, below]
    return x, np.concatenate(codes)


def up(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) + np.uint32(1)).view(np.float32)


def down(x: np.ndarray) -> np.ndarray:
    return (x.view(np.uint32) - np.uint32(1)).view(np.float32)


def check(encoded: np.ndarray, expected: np.ndarray, x: np.ndarray) -> None:
    wrong = np.flatnonzero(encoded != expected)
    assert not len(wrong), [(float(x[i]).hex(), hex(encoded[i]), hex(expected[i])) for i in wrong[:5]]


@pytest.mark.parametrize("fmt", FLOATS.values(), ids=FLOATS)
class TestEveryFormat:
    def test_has_the_limits_of_its_standard(self, fmt):
        bits, largest, normal, subnormal = LIMITS[fmt.name]
        assert (fmt.bits, fmt.largest, fmt.smallest_normal, fmt.smallest_subnormal) == (
            bits,
            largest,
            normal,
            subnormal,
        )
        assert fmt.has_nan == (fmt.name in NANS)
        assert fmt.has_infinity == (fmt.name in INFINITIES)

    def test_decodes_every_code_to_the_exact_number(self, fmt):
        values = fmt.decode(all_codes(fmt))
        assert values.dtype == np.float32
        for code, (value, expected) in enumerate(zip(values, decoded(fmt), strict=True)):
            if expected is NAN:
                assert np.isnan(value), hex(code)
            elif expected is INF:
                assert np.isinf(value), hex(code)
            else:
                assert Fraction(float(value)) == expected, hex(code)
            negative = fmt.signed and code >> (fmt.bits - 1) and not (code == 0x80 and fmt.specials.value == "fnuz")
            assert np.signbit(value) == bool(negative), hex(code)

    def test_decodes_nan_to_the_documented_bits(self, fmt):
        for code in sorted(NANS.get(fmt.name, ())):
            fraction = code & ((1 << fmt.mantissa_bits) - 1)
            bits = 0x7F800000 | fraction << (23 - fmt.mantissa_bits) if fmt.has_infinity else 0x7FC00000
            if fmt.specials.value in ("ieee", "fn"):
                bits |= code >> (fmt.bits - 1) << 31
            assert fmt.decode(np.array([code], fmt.code_dtype)).view(np.uint32)[0] == bits, hex(code)

    def test_keeps_shapes_from_scalars_to_empty(self, fmt):
        for shape in [(), (0,), (3, 0), (2, 3), (1, 1, 1)]:
            codes = np.full(shape, 1, fmt.code_dtype)
            x = fmt.decode(codes)
            assert isinstance(x, np.ndarray)
            assert x.shape == shape
            encoded = fmt.encode(x) if fmt.signed else encode_e8m0(x, rounding="floor")
            assert isinstance(encoded, np.ndarray)
            assert (encoded.shape, encoded.dtype) == (shape, fmt.code_dtype)
            assert (encoded == 1).all()

    def test_reads_strided_and_foreign_codes_alike(self, fmt):
        codes = all_codes(fmt)
        expected = fmt.decode(codes).view(np.uint32)
        assert (fmt.decode(np.repeat(codes, 2)[::2]).view(np.uint32) == expected).all()
        assert (fmt.decode(codes.astype(codes.dtype.newbyteorder(">"))).view(np.uint32) == expected).all()

    def test_refuses_codes_of_another_dtype(self, fmt):
        with pytest.raises(RefquantError, match=f"{fmt.name}: codes of dtype int64"):
            fmt.decode(np.array([1]))


@pytest.mark.parametrize("fmt", [f for f in SIGNED if f.bits < 8], ids=str)
def test_a_code_wider_than_the_format_is_refused(fmt):
    with pytest.raises(RefquantError, match=f"a code has {fmt.bits} bits"):
        fmt.decode(np.array([0, 1 << fmt.bits], np.uint8))


@pytest.mark.parametrize("fmt", SIGNED, ids=lambda f: f.name)
class TestEncode:
    def test_encoding_what_was_decoded_gives_every_code_back(self, fmt):
        codes = all_codes(fmt)
        assert (fmt.encode(fmt.decode(codes)) == codes).all()

    @pytest.mark.parametrize("overflow", ["ieee", "saturate"])
    def test_rounds_every_midpoint_and_its_neighbours_to_nearest_even(self, fmt, overflow):
        x, codes = neighbourhood(fmt)
        past = codes == len(magnitudes(fmt)) - 1
        instead = past_the_largest(fmt, overflow == "saturate")
        if instead is None:
            for v in [*x[past], *-x[past]]:
                with pytest.raises(RefquantError, match="past the largest"):
                    fmt.encode(np.array([v]), overflow=overflow)
            x, codes = x[~past], codes[~past]
        else:
            codes = np.where(past, instead, codes)
        sign = 1 << (fmt.bits - 1)
        negated = np.where(codes == 0, 0, codes | sign) if fmt in FNUZ else codes | sign
        check(fmt.encode(x, overflow=overflow), codes, x)
        check(fmt.encode(-x, overflow=overflow), negated, -x)

    @given(bits=st.integers(0, 2**32 - 1), saturate=st.booleans())
    def test_agrees_with_the_slow_definition_on_any_bits(self, fmt, bits, saturate):
        x = np.array([bits], np.uint32).view(np.float32)
        expected = None if np.isnan(x[0]) else slow_encode(fmt, float(x[0]), saturate)
        if np.isnan(x[0]) and fmt.has_nan:
            assert np.isnan(fmt.decode(fmt.encode(x))[0])
        elif expected is None:
            with pytest.raises(RefquantError, match="index \\(0,\\)"):
                fmt.encode(x, overflow="saturate" if saturate else "ieee")
        else:
            assert fmt.encode(x, overflow="saturate" if saturate else "ieee")[0] == expected

    def test_zeros_keep_their_sign_where_the_format_has_one(self, fmt):
        minus = 0 if fmt in FNUZ else 1 << (fmt.bits - 1)
        assert fmt.encode(np.float32([0.0, -0.0])).tolist() == [0, minus]

    def test_a_negative_that_underflows_is_no_nan(self, fmt):
        tiny = np.float32([-(2.0**-149), -fmt.smallest_subnormal / 4])
        assert (fmt.decode(fmt.encode(tiny)) == 0).all()

    def test_infinity_saturates_when_asked(self, fmt):
        assert fmt.decode(fmt.encode(np.float32([np.inf, -np.inf]), overflow="saturate")).tolist() == [
            fmt.largest,
            -fmt.largest,
        ]

    def test_nan_stays_nan_under_either_overflow_rule(self, fmt):
        nan = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
        for overflow in ("ieee", "saturate"):
            if fmt.has_nan:
                assert np.isnan(fmt.decode(fmt.encode(nan, overflow=overflow))).all()
            else:
                with pytest.raises(RefquantError, match="the format has no NaN"):
                    fmt.encode(nan, overflow=overflow)

    def test_reads_strides_halves_and_foreign_byte_order_alike(self, fmt):
        x = np.linspace(-5, 5, 61, dtype=np.float32)
        assert (fmt.encode(np.repeat(x, 3)[::3]) == fmt.encode(x)).all()
        assert (fmt.encode(x.astype(">f4")) == fmt.encode(x)).all()
        half = x.astype(np.float16)
        assert (fmt.encode(half) == fmt.encode(half.astype(np.float32))).all()

    def test_refuses_what_would_round_twice(self, fmt):
        for given_ in (np.float64([1]), np.int32([1]), np.complex64([1])):
            with pytest.raises(RefquantError, match=f"dtype {given_.dtype} given"):
                fmt.encode(given_)

    def test_refuses_an_unknown_overflow_rule(self, fmt):
        with pytest.raises(RefquantError, match="overflow 'wrap' given"):
            fmt.encode(np.float32([1]), overflow="wrap")


class TestHalf:
    def test_fp16_is_numpys_float16_on_every_code(self):
        codes = all_codes(FP16)
        expected = codes.view(np.float16).astype(np.float32)
        finite = ~np.isnan(expected)
        assert (FP16.decode(codes)[finite].view(np.uint32) == expected[finite].view(np.uint32)).all()

    def test_fp16_encodes_as_numpy_does(self):
        x, _ = neighbourhood(FP16)
        with np.errstate(over="ignore", under="ignore"):
            assert (FP16.encode(x) == x.astype(np.float16).view(np.uint16)).all()

    @pytest.mark.parametrize("fmt", [FP16, BF16, E5M2], ids=lambda f: f.name)
    def test_a_nan_whose_kept_fraction_is_zero_does_not_become_infinity(self, fmt):
        nan = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
        quiet = fmt.largest_code + 1 + (1 << (fmt.mantissa_bits - 1))
        assert fmt.encode(nan).tolist() == [quiet, quiet | 1 << (fmt.bits - 1)]


@cache
def middles() -> list[Fraction]:
    """Half way between each E8M0 number and the next."""
    return [(a + b) / 2 for a, b in zip(magnitudes(E8M0), magnitudes(E8M0)[1:], strict=False)]


E8M0_RULES = {
    "floor": lambda x: bisect_left(magnitudes(E8M0), x + Fraction(1, 2**200)) - 1,
    "ceil": lambda x: bisect_left(magnitudes(E8M0), x),
    # A tie goes up, and so does everything between the two smallest.
    "nearest": lambda x: (
        1 if Fraction(1, 2**127) < x < Fraction(1, 2**126) else bisect_left(middles(), x + Fraction(1, 2**200))
    ),
}


@pytest.mark.parametrize("rounding", E8M0_RULES)
class TestE8M0:
    def test_powers_of_two_are_exact(self, rounding):
        codes = all_codes(E8M0)
        assert (encode_e8m0(E8M0.decode(codes), rounding=rounding) == codes).all()

    @given(bits=st.integers(1, 0x7F7FFFFF))
    def test_rounds_by_its_rule(self, rounding, bits):
        self.check(rounding, np.array([bits], np.uint32).view(np.float32))

    def test_rounds_ties_and_their_neighbours_by_its_rule(self, rounding):
        self.check(rounding, neighbourhood(E8M0)[0])

    @staticmethod
    def check(rounding, x):
        expected = [
            0 if Fraction(float(v)) < Fraction(1, 2**127) else E8M0_RULES[rounding](Fraction(float(v))) for v in x
        ]
        assert encode_e8m0(x, rounding=rounding).tolist() == expected
        saturated = encode_e8m0(x, rounding=rounding, overflow="saturate")
        assert saturated.tolist() == [min(e, 254) for e in expected]

    def test_nan_infinity_and_tiny_numbers(self, rounding):
        x = np.float32([np.nan, np.inf, 2.0**-149])
        assert encode_e8m0(x, rounding=rounding).tolist() == [255, 255, 0]
        assert encode_e8m0(x, rounding=rounding, overflow="saturate").tolist() == [255, 254, 0]

    @pytest.mark.parametrize("x", [0.0, -0.0, -1.0, -np.inf])
    def test_what_is_not_above_zero_is_refused(self, rounding, x):
        with pytest.raises(RefquantError, match=r"at index \(1,\) given; every number must be above zero"):
            encode_e8m0(np.float32([1, x]), rounding=rounding)


def test_e8m0_asks_for_its_rounding_rule():
    with pytest.raises(RefquantError, match="use encode_e8m0"):
        E8M0.encode(np.float32([1]))
    with pytest.raises(RefquantError, match="rounding 'up' given"):
        encode_e8m0(np.float32([1]), rounding="up")
