"""The frozen bytes of tests/formats/ggml_vectors are what ggml writes now."""

import numpy as np
import pytest

from tests.formats.ggml_vectors import load
from tests.peers.test_ggml import FORMATS, named, theirs

pytestmark = pytest.mark.peers


@named(FORMATS)
def test_ggml_still_writes_the_frozen_bytes(fmt):
    frozen = load(fmt.name)
    weights = np.ascontiguousarray(frozen.weights)
    if frozen.plain is not None:
        assert np.array_equal(theirs(fmt, weights), frozen.plain)
    if frozen.weighted is not None:
        assert np.array_equal(theirs(fmt, weights, frozen.importance), frozen.weighted)
