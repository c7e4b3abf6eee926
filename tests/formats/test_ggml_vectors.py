"""Every type of ggml against bytes that ggml wrote, frozen: the default run needs no C (see ggml_vectors)."""

import numpy as np
import pytest

import refquant as rq
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.definitions import element
from refquant.formats.ggml import GgmlFormat
from tests.formats.ggml_vectors import FOLDER, load

FORMATS = [fmt for fmt in map(rq.get_format, rq.formats()) if isinstance(fmt, GgmlFormat)]
every = pytest.mark.parametrize("fmt", FORMATS, ids=[fmt.name for fmt in FORMATS])


def test_every_type_of_ggml_is_here_and_has_its_vectors():
    assert len(FORMATS) == 29
    assert len({fmt.type.type_id for fmt in FORMATS}) == 29
    assert {fmt.name for fmt in FORMATS} == {file.stem for file in FOLDER.glob("*.json")} - {"inputs-64", "inputs-256"}


@every
def test_without_an_importance_matrix_the_bytes_are_ggmls(fmt):
    frozen = load(fmt.name)
    assert (frozen.plain is None) == fmt.needs_imatrix
    if frozen.plain is not None:
        assert_same_bits(fmt.encode_bytes(frozen.weights), frozen.plain, fmt.name)


@every
def test_with_an_importance_matrix_the_bytes_are_ggmls(fmt):
    frozen = load(fmt.name)
    assert (frozen.weighted is None) == (fmt.type.encode_weighted is None)
    expected = frozen.plain if frozen.weighted is None else frozen.weighted
    assert_same_bits(fmt.encode_bytes(frozen.weights, frozen.importance), expected, fmt.name)


@every
def test_ggmls_bytes_decode_as_the_page_defines(fmt):
    frozen = load(fmt.name)
    stored = frozen.weighted if frozen.plain is None else frozen.plain
    decoded = rq.dequantize(stored, fmt, frozen.weights.shape)
    rng = np.random.default_rng(0)
    for row in range(len(stored)):
        for column in rng.integers(0, frozen.weights.shape[1], 20):
            expected = element(fmt, {"blocks": stored}, decoded.shape, (row, int(column)))
            assert_same_bits(decoded[row, column].reshape(1), np.array([expected]), f"{fmt.name} {row}, {column}")


@every
def test_the_vectors_tell_every_row_apart(fmt):
    stored = load(fmt.name).plain
    if stored is not None:
        assert len({row.tobytes() for row in stored}) >= len(stored) - 1
