"""Products whose input is rounded as llama.cpp rounds it."""

import numpy as np
import pytest

import refquant as rq
from refquant.errors import UnknownNameError
from refquant.models import embedded
from refquant.models.rounded_inputs import with_activations

MODEL = rq.load_model(embedded.path())
IDS = np.random.default_rng(0).integers(3, 512, (1, 40))
NAME = "model.layers.2.self_attn.o_proj.weight"


def with_one(scheme):
    return MODEL.with_weights({NAME: rq.quantize(MODEL.weights[NAME].dequantize(), scheme)})


def test_float32_activations_are_the_model_itself():
    assert with_activations(MODEL, "float32") is MODEL


def test_float32_matrices_take_their_input_as_it_is():
    rounded = with_activations(MODEL, "llama.cpp")
    assert np.array_equal(rounded.hidden(IDS), MODEL.hidden(IDS))


@pytest.mark.parametrize(("scheme", "kind"), [("q4_0", "q8_0"), ("q8_0", "q8_0"), ("q5_1", "q8_1"), ("f16", "f16")])
def test_the_input_of_a_quantized_matrix_is_rounded_to_the_type_that_goes_with_it(scheme, kind):
    weight = with_activations(with_one(scheme), "llama.cpp").weights[NAME]
    x = np.random.default_rng(1).standard_normal((2, 3, 64)).astype(np.float32)
    expected = rq.quantize(x, kind).dequantize() @ rq.quantize(MODEL.weights[NAME].dequantize(), scheme).dequantize().T
    assert np.array_equal(weight.linear(x), expected)


def test_a_type_of_256_weight_blocks_goes_with_q8_k():
    matrix = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    down = "model.layers.0.mlp.down_proj.weight"
    weights = {down: rq.quantize(matrix, "q4_k")}
    widened = MODEL.__class__(MODEL.path, MODEL.config, None, {**MODEL.weights, **weights}, MODEL.names)
    x = np.random.default_rng(3).standard_normal((5, 256)).astype(np.float32)
    expected = rq.quantize(x, "q8_k").dequantize() @ weights[down].dequantize().T
    assert np.array_equal(with_activations(widened, "llama.cpp").weights[down].linear(x), expected)


def test_rounding_changes_what_the_model_says_a_little():
    model = with_one("q8_0")
    before, after = model.hidden(IDS), with_activations(model, "llama.cpp").hidden(IDS)
    assert 0 < np.abs(before - after).max() < 0.1 * np.abs(before).max()


def test_a_misspelt_kind_is_told_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"llama\.cpp"):
        with_activations(MODEL, "llamacpp")
