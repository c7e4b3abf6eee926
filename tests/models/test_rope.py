import math

import numpy as np
import pytest

from refquant.models.rope import (
    DefaultRope,
    DynamicRope,
    LinearRope,
    Llama3Rope,
    LongRope,
    Rope,
    YarnRope,
    rotate,
    rotations,
)

COMMON = {"rope_theta": 10_000.0, "dim": 16, "max_position_embeddings": 256}
SHORT, LONG = tuple(1 + 0.1 * i for i in range(8)), tuple(2 + 0.5 * i for i in range(8))


# Independent definitions: one pair, one scalar formula, in Python floats.
def default(i: int, length: int) -> float:
    return 10_000.0 ** (-2 * i / 16)


def linear(i: int, length: int) -> float:
    return default(i, length) / 4


def dynamic(i: int, length: int) -> float:
    if length <= 256:
        return default(i, length)
    base = 10_000.0 * (3 * length / 256 - 2) ** (16 / 14)
    return base ** (-2 * i / 16)


def llama3(i: int, length: int) -> float:
    plain = default(i, length)
    wavelength = 2 * math.pi / plain
    if wavelength < 64 / 4:
        return plain
    if wavelength > 64 / 1:
        return plain / 8
    share = (64 / wavelength - 1) / (4 - 1)
    return (1 - share) * plain / 8 + share * plain


def yarn(i: int, length: int) -> float:
    plain = default(i, length)
    low = 16 * math.log(64 / (32 * 2 * math.pi)) / (2 * math.log(10_000.0))
    high = 16 * math.log(64 / (1 * 2 * math.pi)) / (2 * math.log(10_000.0))
    low, high = max(math.floor(low), 0), min(math.ceil(high), 15)
    share = min(max((i - low) / (high - low), 0), 1)
    return plain / 4 * share + plain * (1 - share)


def longrope(i: int, length: int) -> float:
    return default(i, length) / (LONG if length > 64 else SHORT)[i]


CASES = {
    "default": (DefaultRope(**COMMON), default, 1.0),
    "linear": (LinearRope(**COMMON, factor=4.0), linear, 1.0),
    "dynamic": (DynamicRope(**COMMON, factor=3.0), dynamic, 1.0),
    "llama3": (
        Llama3Rope(
            **COMMON, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        ),
        llama3,
        1.0,
    ),
    "yarn": (YarnRope(**COMMON, original_max_position_embeddings=64), yarn, 0.1 * math.log(4) + 1),
    "longrope": (
        LongRope(**COMMON, original_max_position_embeddings=64, short_factor=SHORT, long_factor=LONG),
        longrope,
        math.sqrt(1 + math.log(4) / math.log(64)),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [1, 64, 65, 256, 257, 8192])
def test_frequencies_equal_their_scalar_definition(name: str, length: int) -> None:
    rope, definition, _ = CASES[name]
    expected = [definition(i, length) for i in range(8)]
    np.testing.assert_allclose(rope.frequencies(length), expected, rtol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_rotations_are_cosines_and_sines_of_position_times_frequency_far_out_too(name: str) -> None:
    rope, definition, amplitude = CASES[name]
    cos, sin = rotations(rope, 8000, 8192, 8192)
    for row, position in ((0, 8000), (191, 8191)):
        for i in range(8):
            angle = float(np.float32(position) * np.float32(definition(i, 8192)))
            assert cos[row, i] == np.float32(amplitude * math.cos(angle))
            assert sin[row, i] == np.float32(amplitude * math.sin(angle))


def test_a_rotation_turns_pairs_half_a_rotary_dimension_apart_and_leaves_the_rest() -> None:
    rope = DefaultRope(rope_theta=100.0, dim=4, max_position_embeddings=8)
    x = np.arange(12, dtype=np.float32).reshape(1, 2, 1, 1, 6)
    out = np.empty_like(x)
    rotate(x, *rotations(rope, 3, 5, 5), out=out)
    for token, position in enumerate((3, 4)):
        row = x[0, token, 0, 0].astype(np.float64)
        for i, frequency in enumerate((1.0, 0.1)):
            z = complex(row[i], row[i + 2]) * complex(math.cos(position * frequency), math.sin(position * frequency))
            np.testing.assert_allclose(out[0, token, 0, 0, [i, i + 2]], [z.real, z.imag], rtol=1e-6)
        np.testing.assert_array_equal(out[0, token, 0, 0, 4:], x[0, token, 0, 0, 4:])


@pytest.mark.parametrize(
    ("options", "amplitude"),
    [
        ({"factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"factor": 0.5}, 1.0),
        ({"factor": 4.0, "attention_factor": 1.25}, 1.25),
        ({"factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.4}, (0.07 * math.log(4) + 1) / (0.14 * math.log(4) + 1)),
        ({"factor": 4.0, "mscale": 0.7}, 0.1 * math.log(4) + 1),
    ],
)
def test_yarn_sharpens_attention_as_its_options_say(options: dict[str, float], amplitude: float) -> None:
    rope = YarnRope(**COMMON, original_max_position_embeddings=64, **options)
    assert rope.amplitude == pytest.approx(amplitude, rel=1e-15)


def test_yarn_without_truncation_keeps_fractional_bounds() -> None:
    options = {"original_max_position_embeddings": 64, "beta_fast": 4.0, "beta_slow": 0.05}
    low = 16 * math.log(64 / (4 * 2 * math.pi)) / (2 * math.log(10_000.0))
    high = 16 * math.log(64 / (0.05 * 2 * math.pi)) / (2 * math.log(10_000.0))
    share = min(max((3 - low) / (high - low), 0), 1)
    plain = default(3, 1)
    found = YarnRope(**COMMON, **options, truncate=False).frequencies(1)[3]
    assert found == pytest.approx(plain / 4 * share + plain * (1 - share), rel=1e-14)
    assert found != pytest.approx(YarnRope(**COMMON, **options).frequencies(1)[3], rel=1e-3)


def test_rotations_are_shared_and_cannot_be_written() -> None:
    rope: Rope = CASES["default"][0]
    cos, _ = rotations(rope, 0, 4, 4)
    assert rotations(rope, 0, 4, 4)[0] is cos
    with pytest.raises(ValueError, match="read-only"):
        cos[0, 0] = 0
