"""The float formats against ml_dtypes and NumPy's float16: every code, and a million float32 bit patterns."""

import ml_dtypes
import numpy as np
import pytest
import torch

from refquant.floats import E2M1, E2M3, E3M2, E8M0, FLOATS, encode_e8m0

pytestmark = pytest.mark.peers

PEERS = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
FINITE_ONLY = (E2M1, E2M3, E3M2)  # ml_dtypes saturates these three


def test_every_format_has_a_peer():
    assert set(PEERS) == set(FLOATS)


def all_codes(fmt):
    return np.arange(1 << fmt.bits, dtype=fmt.code_dtype)


def peer_codes(x, fmt):
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return x.astype(PEERS[fmt.name]).view(fmt.code_dtype)


def sample(fmt):
    """Random float32 bit patterns without NaN, and every number and midpoint with the float32 on either side."""
    patterns = np.random.default_rng(2).integers(0, 2**32, 1_200_000, dtype=np.uint32).view(np.float32)
    numbers = np.unique(fmt.decode(all_codes(fmt))).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    points = np.concatenate([numbers, (numbers[:-1] + numbers[1:]) / 2]).astype(np.float32)
    points = np.concatenate(
        [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    )
    x = np.concatenate([patterns[~np.isnan(patterns)], points, np.float32([0.0, -0.0, np.inf, -np.inf])])
    assert len(x) > 1_000_000
    return x


@pytest.mark.parametrize("fmt", FLOATS.values(), ids=FLOATS)
def test_every_code_decodes_alike(fmt):
    codes = all_codes(fmt)
    with np.errstate(invalid="ignore"):
        expected = codes.view(PEERS[fmt.name]).astype(np.float32)
    decoded = fmt.decode(codes)
    nan = np.isnan(expected)
    assert (np.isnan(decoded) == nan).all()
    assert (decoded[~nan].view(np.uint32) == expected[~nan].view(np.uint32)).all()


@pytest.mark.parametrize("fmt", [f for f in FLOATS.values() if f is not E8M0], ids=lambda f: f.name)
def test_a_million_bit_patterns_and_all_midpoints_encode_alike(fmt):
    x = sample(fmt)
    encoded = fmt.encode(x, overflow="saturate" if fmt in FINITE_ONLY else "ieee")
    wrong = np.flatnonzero(encoded != peer_codes(x, fmt))
    assert not len(wrong), [(float(v).hex(), hex(fmt.encode(v))) for v in x[wrong[:5]]]


@pytest.mark.parametrize("fmt", [f for f in FLOATS.values() if f not in FINITE_ONLY], ids=lambda f: f.name)
def test_nan_becomes_nan_in_both(fmt):
    nan = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    encoded = encode_e8m0(nan, rounding="floor") if fmt is E8M0 else fmt.encode(nan)
    assert np.isnan(fmt.decode(encoded)).all()
    assert np.isnan(fmt.decode(peer_codes(nan, fmt))).all()


def test_e8m0_to_nearest_is_the_rounding_of_ml_dtypes_and_torch():
    subnormal = np.concatenate([np.arange(1, 1 << 23, 257), np.arange(0x3FFFF0, 0x400010)]).astype(np.uint32)
    x = np.concatenate([np.abs(sample(E8M0)), subnormal.view(np.float32)])
    x = x[x > 0]
    encoded = encode_e8m0(x, rounding="nearest")
    assert (encoded == peer_codes(x, E8M0)).all()
    finite = np.isfinite(x)
    by_torch = torch.from_numpy(x[finite]).to(torch.float8_e8m0fnu).view(torch.uint8).numpy()
    assert (encoded[finite] == by_torch).all()
