import math

import numpy as np
import pytest

from refquant.models.activations import ACTIVATIONS


def silu(x):
    return x / (1 + math.exp(-x)) if x > -700 else 0.0


def gelu_tanh(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


DEFINITIONS = {
    "silu": silu,
    "swish": silu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": lambda x: max(x, 0.0),
}


def test_every_activation_has_a_definition_here():
    assert set(DEFINITIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_activations_equal_their_scalar_definitions(name):
    x = np.concatenate([np.linspace(-12, 12, 481), [0.0, 1e-30, -1e-30, 80.0, -80.0, 200.0, -200.0]]).astype(np.float32)
    expected = [DEFINITIONS[name](float(v)) for v in x]
    with np.errstate(over="ignore"):
        found = ACTIVATIONS[name](x.copy())
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_activations_work_in_place(name):
    x = np.ones(4, np.float32)
    assert ACTIVATIONS[name](x) is x
