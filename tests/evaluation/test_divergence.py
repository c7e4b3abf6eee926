import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.errors import ModelError, NonFiniteError
from refquant.evaluation import divergence
from refquant.evaluation.base_logprobs import logprob_store
from refquant.evaluation.divergence import compare
from refquant.evaluation.logprobs import log_softmax

from .memory_model import memory_model, reference_logprobs

IDS = np.random.default_rng(0).integers(0, 11, 120)


@given(st.integers(0, 2**32), st.floats(0.01, 50), st.integers(2, 200))
def test_a_model_beside_itself_diverges_by_exactly_nothing(seed, scale, length):
    ids = np.random.default_rng(seed).integers(0, 11, length)
    model = memory_model(seed, scale=scale)
    found = divergence(model, memory_model(seed, scale=scale), ids, window=16)
    assert (found.kl_mean, found.kl_p999, found.rms_dp, found.same_top) == (0, 0, 0, 1)
    assert (found.kl_p999_low, found.kl_p999_high, found.rms_dp_stderr, found.same_top_stderr) == (0, 0, 0, 0)
    assert found.kl_mean_stderr == 0 or length == 2


def test_the_figures_are_those_of_a_plain_loop_in_float64():
    base, model = memory_model(0, scale=0.5), memory_model(1, scale=0.5)
    pairs = [[reference_logprobs(m, IDS[max(0, t - 15) : t]) for m in (base, model)] for t in range(1, len(IDS))]
    kl = np.array([(np.exp(p) * (p - q)).sum() for p, q in pairs])
    dp = np.array([np.exp(q[right]) - np.exp(p[right]) for (p, q), right in zip(pairs, IDS[1:], strict=True)])
    top = np.mean([p.argmax() == q.argmax() for p, q in pairs])
    n = len(kl)

    found = divergence(base, model, IDS, window=16, stride=1)
    assert found.scored_tokens == n
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-5)
    assert found.kl_mean_stderr == pytest.approx(kl.std(ddof=1) / math.sqrt(n), rel=1e-5)
    assert found.kl_p999 == pytest.approx(kl.max(), rel=1e-5)
    assert found.same_top == top
    assert found.same_top_stderr == pytest.approx(math.sqrt(top * (1 - top) / n))
    assert found.rms_dp == pytest.approx(math.sqrt((dp**2).mean()), rel=1e-5)


def test_the_order_of_base_and_model_matters():
    base, model = memory_model(0, scale=0.5), memory_model(1, scale=0.5)
    forth, back = divergence(base, model, IDS, window=16), divergence(model, base, IDS, window=16)
    assert abs(forth.kl_mean - back.kl_mean) > 0.01
    assert forth.rms_dp == back.rms_dp


def test_divergence_of_known_distributions():
    p, q = np.log(np.float32([[0.5, 0.25, 0.25]])), np.log(np.float32([[0.25, 0.5, 0.25]]))
    found = compare(p, q, np.array([0]))
    assert found.kl[0] == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert not found.same_top[0]
    assert found.dp[0] == pytest.approx(-0.25, rel=1e-6)


def test_a_token_that_the_base_all_but_excludes_adds_nothing():
    logits = np.float32([[0, -200, 0]])
    other = np.float32([[0, 200, 0]])
    targets = np.array([0])
    log_softmax(logits, targets)
    log_softmax(other, targets)
    assert np.isfinite(compare(logits, other, targets).kl).all()


def test_models_of_two_vocabularies_cannot_be_compared():
    with pytest.raises(ModelError, match=r"11 \(base\) and 12"):
        divergence(memory_model(), memory_model(vocab_size=12), IDS)


def test_a_model_that_overflows_is_refused():
    broken = memory_model()
    broken.weights["embed"].array[int(IDS[4])] = np.nan
    with pytest.raises(NonFiniteError, match="log-probability is nan"), np.errstate(invalid="ignore"):
        divergence(memory_model(), broken, IDS)


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_log_probabilities_are_kept_to_the_bit_in_memory_and_beyond(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rows = np.random.default_rng(0).standard_normal((20, 11)).astype(np.float32)
    with logprob_store(20, 11, memory) as store:
        assert isinstance(store, np.memmap) == (memory == 0)
        store[:7], store[7:] = rows[:7], rows[7:]
        assert store.tobytes() == rows.tobytes()
        assert store.dtype == np.float32
    del store
    assert list(tmp_path.iterdir()) == []


def test_the_temporary_file_is_gone_after_an_error_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), logprob_store(20, 11, memory=0):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_fits_nowhere_says_what_it_needs():
    with pytest.raises(ValueError, match=r"TMPDIR"), logprob_store(10**12, 50000, memory=0):
        pass
