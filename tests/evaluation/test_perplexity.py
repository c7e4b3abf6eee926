import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refquant.errors import NonFiniteError, RefquantError
from refquant.evaluation import perplexity, scoring

from .memory_model import memory_model, reference_logprobs

MODEL = memory_model(scale=0.5)


def reference_nll(model, ids, method, window, stride):
    """The scored tokens' −log p, by the definition: one token at a time, in float64."""
    nll = []
    for t in range(1, len(ids)):
        if method == "chunked":
            begin = t - t % window
            if begin == t:
                continue
        else:
            begin = 0
            while begin + window <= t:
                begin += stride
        nll.append(-reference_logprobs(model, ids[begin:t])[ids[t]])
    return nll


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=2, max_size=40), st.integers(2, 16), st.data())
def test_perplexity_is_what_a_plain_loop_in_float64_gives(ids, window, data):
    method = data.draw(st.sampled_from(["sliding", "chunked"]))
    stride = data.draw(st.integers(1, window - 1)) if method == "sliding" else window
    nll = reference_nll(MODEL, ids, method, window, stride)
    found = perplexity(MODEL, ids, method=method, window=window, stride=stride)
    assert found.scored_tokens == len(nll)
    assert found.nll == pytest.approx(sum(nll), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    if len(nll) > 1:
        expected = math.exp(np.mean(nll)) * np.std(nll, ddof=1) / math.sqrt(len(nll))
        assert found.stderr == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_mean_is_over_tokens_and_not_over_windows_or_documents():
    documents = [[1, 2, 3, 4, 5, 6, 7], [8, 9]]
    found = perplexity(MODEL, documents)
    nll = [value for ids in documents for value in reference_nll(MODEL, ids, "sliding", 16, 8)]
    assert found.perplexity == pytest.approx(math.exp(np.mean(nll)), rel=1e-5)
    assert found.scored_tokens == 7
    assert found.documents == 2


def test_each_document_starts_anew_with_bos():
    found = perplexity(MODEL, ["abc", "de"])
    nll = [v for ids in ([0, 1, 2, 3], [0, 4, 5]) for v in reference_nll(MODEL, ids, "sliding", 16, 8)]
    assert found.nll == pytest.approx(sum(nll), rel=1e-5)
    assert (found.bos, found.scored_tokens) == ("always", 5)


def test_batches_and_chunks_change_nothing_but_the_memory(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 11, 300)
    model = memory_model()
    whole = perplexity(model, ids, window=16, stride=4)
    fed = sum(batch * tokens for batch, tokens in model.fed)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 45)
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 5 * 11 * 4)
    model.fed.clear()
    small = perplexity(model, ids, window=16, stride=4)
    assert small.nll == pytest.approx(whole.nll, rel=1e-5)
    assert max(batch * tokens for batch, tokens in model.fed) == 45
    assert sum(batch * tokens for batch, tokens in model.fed) == fed


def test_a_window_longer_than_a_batch_still_runs(monkeypatch):
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 3)
    assert perplexity(MODEL, range(11), window=16).scored_tokens == 10


def test_defaults_are_the_models_positions_and_half_of_them():
    found = perplexity(MODEL, [1, 2, 3])
    assert (found.method, found.window, found.stride) == ("sliding", 16, 8)
    assert perplexity(memory_model(max_positions=5000), [1, 2]).window == 2048
    chunked = perplexity(MODEL, [1, 2, 3], method="chunked", window=5)
    assert (chunked.window, chunked.stride) == (5, 5)


def test_progress_rises_to_the_scored_tokens(monkeypatch):
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 30)
    told = []
    found = perplexity(MODEL, list(range(11)) * 9, window=16, on_scored=lambda *counts: told.append(counts))
    done, totals = zip(*told, strict=True)
    assert list(done) == sorted(set(done))
    assert done[-1] == found.scored_tokens == 98
    assert set(totals) == {98}


def test_one_scored_token_has_a_perplexity_and_no_error():
    found = perplexity(MODEL, [1, 2])
    assert found.perplexity == pytest.approx(math.exp(found.nll))
    assert math.isnan(found.stderr)


def test_a_hopeless_model_has_an_infinite_perplexity_and_not_a_crash():
    found = perplexity(memory_model(scale=100.0), [1, 2, 3, 4])
    assert found.nll > 3000
    assert found.perplexity == math.inf


def test_a_model_that_overflows_is_refused_with_the_token_named():
    model = memory_model()
    model.weights["embed"].array[7] = np.inf
    with (
        pytest.raises(NonFiniteError, match="token 3 of document 1: its log-probability is nan"),
        np.errstate(invalid="ignore"),
    ):
        perplexity(model, [[1, 2, 3], [4, 5, 7, 6, 5]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 17}, "the model has 16 positions"),
        ({"window": 1}, "window = 1"),
        ({"window": 4, "stride": 4}, "stride = 4 given with window = 4; 1 … 3"),
        ({"window": 4, "stride": 0}, "stride = 0"),
        ({"method": "chunked", "window": 4, "stride": 2}, "do not overlap"),
    ],
)
def test_windows_that_cannot_be_are_refused(options, message):
    with pytest.raises(RefquantError, match=message):
        perplexity(MODEL, [1, 2, 3], **options)
