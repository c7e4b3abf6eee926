"""stories260K on held-out stories; tests/cli/test_bench.py holds its published figures, quantized ones too."""

import functools
import math

import numpy as np
import pytest

import refquant as rq
from refquant.evaluation import quantize_model, split_documents
from refquant.models import embedded


@functools.cache
def model():
    return rq.load_model(embedded.path())


@functools.cache
def stories():
    return split_documents(embedded.text_path().read_bytes().decode(), "<|endoftext|>")


def test_twelve_stories_score_3800_tokens_at_the_published_perplexity():
    found = rq.perplexity(model(), stories(), method="per-document")
    assert found.perplexity == pytest.approx(3.1307, abs=1e-3)
    assert (found.scored_tokens, found.documents, found.window, found.bos) == (3800, 12, 512, "always")
    assert found.stderr == pytest.approx(0.077, abs=1e-3)


def test_the_perplexity_is_that_of_a_plain_loop_over_the_whole_softmax():
    story = stories()[0]
    ids = np.concatenate([[model().tokenizer.bos_id], model().tokenizer.encode(story)])
    hidden = model().hidden(ids[None])[0]
    total = 0.0
    for t in range(1, len(ids)):
        logits = model().logits(hidden[t - 1]).astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        total -= math.log(probabilities[ids[t]])
    found = rq.perplexity(model(), story)
    assert found.nll == pytest.approx(total, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-6)


def test_the_model_beside_itself_diverges_by_exactly_nothing():
    found = rq.divergence(model(), rq.load_model(embedded.path()), stories()[:3], window=64)
    assert (found.kl_mean, found.kl_mean_stderr, found.kl_p999, found.rms_dp) == (0, 0, 0, 0)
    assert (found.same_top, found.scored_tokens) == (1, 1021)


def test_a_tied_embedding_is_quantized_once_and_serves_both_ends():
    int8, _ = quantize_model(model(), rq.get_format("int8"), embeddings="quantize")
    names = [name for name in int8.weights if "embed" in name or "head" in name]
    assert names == list(model().embedding_names) == ["model.embed_tokens.weight"]
    table = int8.weights[names[0]].dequantize()
    hidden = np.eye(64, dtype=np.float32)
    assert np.array_equal(int8.logits(hidden), hidden @ table.T)
