import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from refquant.models.sampling import Sampling, probabilities

pytestmark = pytest.mark.peers


@given(
    seed=st.integers(0, 2**32),
    size=st.integers(2, 300),
    temperature=st.floats(0.1, 5),
    top_k=st.integers(1, 300),
    top_p=st.floats(0.05, 0.99),
    min_p=st.floats(0.001, 0.9),
)
def test_filters_leave_the_distribution_that_transformers_leaves(seed, size, temperature, top_k, top_p, min_p):
    # Drawn from a seed and without ties: of equal tokens at the edge of top-p, torch's unstable sort picks any.
    logits = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    scores = torch.from_numpy(logits).double()[None]
    for warp in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k),
        TopPLogitsWarper(top_p),
        MinPLogitsWarper(min_p),
    ):
        scores = warp(None, scores)
    ours = probabilities(logits, Sampling(temperature, top_k, top_p, min_p))
    np.testing.assert_allclose(ours, scores.softmax(-1)[0].numpy(), rtol=1e-9)
