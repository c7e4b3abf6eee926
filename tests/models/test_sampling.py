import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refquant.errors import NonFiniteError, RefquantError
from refquant.models.sampling import Sampling, choose, probabilities

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.2, 0.25], np.float32))  # token 1 is the likeliest, then 4, 3, 2, 0

logits_of_any_size = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False) | st.just(-math.inf), min_size=1, max_size=30
).filter(lambda values: max(values) > -math.inf)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 1e300),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
)


def kept(**options):
    return np.flatnonzero(probabilities(LOGITS, Sampling(temperature=1.0, **options))).tolist()


def test_without_a_temperature_the_likeliest_token_is_chosen_and_of_equal_ones_the_lowest():
    random = np.random.default_rng(0)
    assert choose(LOGITS, Sampling(), random) == 1
    assert choose(np.array([0, 7, 7], np.float32), Sampling(top_p=0.5), random) == 1
    assert random.random() == np.random.default_rng(0).random()  # greedy draws no number


def test_a_temperature_of_one_leaves_the_softmax():
    assert probabilities(LOGITS, Sampling(temperature=1)) == pytest.approx([0.05, 0.4, 0.1, 0.2, 0.25], rel=1e-6)


def test_a_temperature_divides_the_logits():
    squares = np.array([0.05, 0.4, 0.1, 0.2, 0.25]) ** 2
    assert probabilities(LOGITS, Sampling(temperature=0.5)) == pytest.approx(squares / squares.sum(), rel=1e-6)


@pytest.mark.parametrize("tiny", [5e-324, 1e-300, 1e-30])
def test_a_tiny_temperature_is_greedy_without_an_overflow(tiny):
    assert probabilities(LOGITS, Sampling(temperature=tiny)).tolist() == [0, 1, 0, 0, 0]


def test_top_k_keeps_the_k_largest_and_what_equals_the_last():
    assert kept(top_k=2) == [1, 4]
    assert kept(top_k=99) == [0, 1, 2, 3, 4]
    equal = probabilities(np.array([1, 2, 1, 0], np.float32), Sampling(temperature=1, top_k=2))
    assert np.flatnonzero(equal).tolist() == [0, 1, 2]


def test_top_p_keeps_the_likeliest_until_their_sum_reaches_p():
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.41) == [1, 4]
    assert kept(top_p=0.66) == [1, 3, 4]
    assert kept(top_p=1.0) == [0, 1, 2, 3, 4]
    assert kept(top_p=5e-324) == [1]


def test_top_p_takes_the_lower_of_equal_ids_first():
    p = probabilities(np.zeros(4, np.float32), Sampling(temperature=1, top_p=0.5))
    assert p.tolist() == [0.5, 0.5, 0, 0]


def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest():
    assert kept(min_p=0.3) == [1, 3, 4]
    assert kept(min_p=1.0) == [1]


def test_every_filter_sees_what_the_ones_before_it_left():
    # top-k 2 leaves 0.4 and 0.25, which are 0.615 and 0.385 of the rest: the first alone reaches 0.6.
    assert kept(top_k=2, top_p=0.6) == [1]
    assert kept(top_p=0.6) == [1, 4]


@given(logits_of_any_size, samplings)
@example([-math.inf, 0.0], Sampling(temperature=1e300, min_p=1.0))
@example([3e38, -3e38], Sampling(temperature=5e-324, top_p=5e-324))
@example([-1.0, 0.0], Sampling(temperature=2e16, top_p=0.5))
def test_probabilities_sum_to_one_and_keep_the_likeliest(values, sampling):
    logits = np.array(values, np.float32)
    p = probabilities(logits, sampling)
    assert p.dtype == np.float64
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()
    assert p[np.argmax(logits)] == p.max()
    assert (p[logits == -np.inf] == 0).all()


@given(logits_of_any_size, samplings, st.integers(0, 2**32))
def test_a_token_of_probability_zero_is_never_drawn(values, sampling, seed):
    logits = np.array(values, np.float32)
    token = choose(logits, sampling, np.random.default_rng(seed))
    assert probabilities(logits, sampling)[token] > 0


class Fixed:
    """A generator that draws the number it is told to."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


def test_the_ends_of_the_unit_interval_draw_the_first_and_the_last_token_left():
    masked = np.array([-np.inf, 0, 0, -np.inf], np.float32)
    assert choose(masked, Sampling(temperature=1), Fixed(0.0)) == 1
    assert choose(masked, Sampling(temperature=1), Fixed(np.nextafter(0.5, 0))) == 1
    assert choose(masked, Sampling(temperature=1), Fixed(0.5)) == 2
    assert choose(masked, Sampling(temperature=1), Fixed(np.nextafter(1, 0))) == 2


def test_draws_follow_the_distribution_and_the_seed():
    sampling = Sampling(temperature=1, top_p=0.9)

    def draw(seed):
        random = np.random.default_rng(seed)
        return [choose(LOGITS, sampling, random) for _ in range(1000)]

    expected = probabilities(LOGITS, sampling)
    assert np.bincount(draw(0), minlength=5) / 1000 == pytest.approx(expected, abs=0.06)  # about four standard errors
    assert draw(0) == draw(0) != draw(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": 0}, "top-k 0"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_p": 1.1}, "top-p 1.1"),
        ({"top_p": math.nan}, "top-p nan"),
        ({"min_p": -1e-9}, "min-p -1e-09"),
        ({"min_p": math.nan}, "min-p nan"),
    ],
)
def test_a_value_outside_its_range_is_an_error_that_names_it(options, message):
    with pytest.raises(RefquantError, match=message + " given; it must be"):
        Sampling(**options)


@pytest.mark.parametrize("bad", [[0, np.nan], [0, np.inf], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_do_not_say_what_is_likeliest_are_an_error(bad, temperature):
    with pytest.raises(NonFiniteError, match="logits"):
        choose(np.array(bad, np.float32), Sampling(temperature=temperature), np.random.default_rng(0))
