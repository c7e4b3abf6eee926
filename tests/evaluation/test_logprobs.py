import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from refquant.evaluation import logprobs
from refquant.evaluation.logprobs import log_softmax, row_blocks, token_nll

logits_of_any_size = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 20)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


def exact(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def some_targets(logits):
    return (np.arange(len(logits), dtype=np.int64) * 7) % logits.shape[1]


@given(logits_of_any_size)
def test_nll_is_what_float64_gives_whatever_the_size_of_the_logits(logits):
    targets = some_targets(logits)
    expected = -exact(logits)[np.arange(len(logits)), targets]
    assert token_nll(logits.copy(), targets) == pytest.approx(expected, rel=1e-6, abs=2e-6)


@given(logits_of_any_size)
def test_log_softmax_leaves_log_probabilities_and_gives_the_same_nll_to_the_bit(logits):
    targets, found = some_targets(logits), logits.copy()
    nll = log_softmax(found, targets)
    assert nll.tobytes() == token_nll(logits.copy(), targets).tobytes()
    assert found == pytest.approx(exact(logits), rel=1e-6, abs=2e-6)


@given(logits_of_any_size)
def test_a_row_does_not_depend_on_the_rows_around_it(logits):
    targets, whole = some_targets(logits), logits.copy()
    nll = log_softmax(whole, targets)
    for i in range(len(logits)):
        row = logits[i : i + 1].copy()
        assert log_softmax(row, targets[i : i + 1])[0] == nll[i]
        assert row.tobytes() == whole[i : i + 1].tobytes()


def test_many_blocks_give_what_one_block_gives(monkeypatch):
    logits = np.random.default_rng(0).standard_normal((23, 33)).astype(np.float32)
    targets, one = some_targets(logits), logits.copy()
    nll = log_softmax(one, targets)
    monkeypatch.setattr(logprobs, "BLOCK_BYTES", 5 * 33 * 4)
    assert [s.stop - s.start for s in row_blocks(23, 33)] == [5, 5, 5, 5, 3]
    many = logits.copy()
    assert log_softmax(many, targets).tobytes() == nll.tobytes()
    assert many.tobytes() == one.tobytes()


def test_what_is_not_finite_stays_visible():
    logits = np.array([[0, np.nan], [0, np.inf], [0, -np.inf]], np.float32)
    nan, inf, impossible = token_nll(logits, np.array([0, 0, 1]))
    assert np.isnan(nan)
    assert np.isnan(inf)
    assert impossible == np.inf
