import math
from itertools import product

import numpy as np
import pytest

from refquant.models.attention import BLOCK, attend


def definition(q, k, v, window, soft_cap):
    """Softmax attention written out query by query, in float64."""
    batch, kv_heads, tokens, group, dim = q.shape
    first = v.shape[2] - tokens
    out = np.zeros((batch, tokens, kv_heads, group, dim))
    for b, h, t, g in product(range(batch), range(kv_heads), range(tokens), range(group)):
        position = first + t
        begin = 0 if window is None else max(0, position - window + 1)
        scores = [float(q[b, h, t, g].astype(np.float64) @ k[b, h, :, j]) for j in range(begin, position + 1)]
        if soft_cap is not None:
            scores = [soft_cap * math.tanh(s / soft_cap) for s in scores]
        weights = np.exp(np.array(scores) - max(scores))
        out[b, t, h, g] = weights @ v[b, h, begin : position + 1] / weights.sum()
    return out


def draw(tokens, length, scale=1.0, batch=2, kv_heads=2, group=3, dim=4):
    rng = np.random.default_rng(tokens * 1000 + length)
    q = rng.normal(0, scale, (batch, kv_heads, tokens, group, dim)).astype(np.float32)
    k = rng.normal(0, 1, (batch, kv_heads, dim, length)).astype(np.float32)
    v = rng.normal(0, 1, (batch, kv_heads, length, dim)).astype(np.float32)
    return q, k, v


@pytest.mark.parametrize("soft_cap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 1000])
@pytest.mark.parametrize(("tokens", "length"), [(1, 1), (1, 90), (5, 7), (BLOCK + 3, BLOCK + 3), (70, 140), (64, 65)])
def test_blocks_equal_the_definition(tokens, length, window, soft_cap):
    q, k, v = draw(tokens, length)
    np.testing.assert_allclose(
        attend(q, k, v, window, soft_cap), definition(q, k, v, window, soft_cap), rtol=1e-4, atol=2e-6
    )


@pytest.mark.parametrize("window", [3, BLOCK, 100])
def test_a_key_just_inside_the_window_counts_and_one_just_outside_does_not(window):
    length = 2 * BLOCK + 50
    q, k, v = draw(length, length)
    reference = attend(q, k, v, window, None)
    for key in (0, 1, BLOCK - 1, BLOCK, 100):
        changed = v.copy()
        changed[:, :, key] += 1000
        touched = (attend(q, k, changed, window, None) != reference).any(axis=(0, 2, 3, 4))
        expected = np.zeros(length, bool)
        expected[key : key + window] = True
        np.testing.assert_array_equal(touched, expected)


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
def test_scores_beyond_the_exponential_s_range_are_shifted(shift):
    q, k, v = draw(20, 20, dim=4)
    q[..., 3], k[..., 3, :] = 1.0, 0.0
    k[..., 3, :] += shift  # the same addend for every score
    np.testing.assert_allclose(attend(q, k, v, None, None), definition(q, k, v, None, None), rtol=1e-3, atol=1e-4)


def test_an_infinite_or_nan_score_gives_nan_as_the_arithmetic_does():
    q, k, v = draw(4, 4)
    q[0, 0, 2, 0] = np.nan
    with np.errstate(invalid="ignore"):
        out = attend(q, k, v, None, None)
    assert np.isnan(out[0, 2, 0, 0]).all()
    assert np.isfinite(out[1]).all()
