"""SmolLM2-135M, dequantized from its GGUF: perplexities of WikiText-2's first 8,192 tokens, as torch measured them."""

import numpy as np
import pytest

import refquant as rq
from tests.peers import smollm2

pytestmark = [pytest.mark.peers, pytest.mark.slow]


@pytest.fixture(scope="module")
def model():
    return rq.load_model(smollm2.folder())


@pytest.fixture(scope="module")
def ids(model):
    ids = np.asarray(model.tokenizer.encode(smollm2.wikitext()))
    assert len(ids) == 312_144
    return ids[:8192]


@pytest.mark.parametrize(("window", "perplexity"), [(1024, 20.006), (2048, 18.642)])
def test_sliding_perplexity_equals_the_published_figure(model, ids, window, perplexity):
    result = rq.perplexity(model, ids, method="sliding", window=window, stride=512)
    assert result.scored_tokens == 8191
    assert result.perplexity == pytest.approx(perplexity, abs=0.005)
