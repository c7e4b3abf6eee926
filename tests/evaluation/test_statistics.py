import math
import statistics as stdlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.evaluation import statistics

samples = st.lists(st.floats(-100, 100), min_size=2, max_size=50)


@given(samples)
def test_the_mean_has_the_standard_error_of_the_textbook(sample):
    found = statistics.mean(np.array(sample))
    assert found.value == pytest.approx(stdlib.fmean(sample), abs=1e-9)
    assert found.stderr == pytest.approx(stdlib.stdev(sample) / math.sqrt(len(sample)), abs=1e-9)


def test_one_token_gives_a_mean_and_no_error():
    found = statistics.mean(np.array([3.0]))
    assert found.value == 3
    assert math.isnan(found.stderr)


def test_a_share_has_the_binomial_error():
    assert statistics.share(1, 4) == (0.25, math.sqrt(0.25 * 0.75 / 4))
    assert statistics.share(7, 7) == (1.0, 0.0)


def test_the_error_of_a_root_mean_square_is_the_spread_that_many_samples_show():
    draws = np.random.default_rng(0).standard_normal((2000, 400))
    found = [statistics.root_mean_square(draw) for draw in draws]
    assert np.mean([f.stderr for f in found]) == pytest.approx(np.std([f.value for f in found]), rel=0.05)
    assert statistics.root_mean_square(np.zeros(5)) == (0.0, 0.0)


@given(samples, st.floats(0.01, 0.999))
def test_a_percentile_is_the_smallest_value_that_enough_of_the_sample_does_not_pass(sample, p):
    found = statistics.percentile(np.array(sample), p)
    reached = [value for value in sample if sum(other <= value for other in sample) >= p * len(sample)]
    assert found.value == min(reached)
    assert min(sample) <= found.low <= found.value <= found.high <= max(sample)


def test_the_interval_of_a_percentile_counts_ranks():
    sample = np.random.default_rng(0).permutation(10000).astype(float)
    assert statistics.percentile(sample, 0.999) == (9989, 9985, 9993)  # √(10000 · 0.999 · 0.001) is 3.16: 4 ranks
    assert statistics.percentile(sample[:50], 0.999).value == sample[:50].max()


def test_the_interval_of_a_percentile_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).random((2000, 3000))
    covered = [low <= 0.999 <= high for _, low, high in (statistics.percentile(draw, 0.999) for draw in draws)]
    assert 0.68 <= np.mean(covered) <= 0.85  # ranks are whole, so the interval is no shorter than one deviation
