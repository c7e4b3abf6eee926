"""A model whose matrices are quantized, and what that did to the weights."""

import math
from dataclasses import dataclass

import numpy as np

from refquant.arrays import Float32
from refquant.errors import unknown_name
from refquant.formats.base import Format, QuantizedTensor, encode
from refquant.models.model import Model
from refquant.quantize import sqnr_db

EMBEDDINGS = ("keep", "quantize")

SUM_BLOCK = 1 << 16  # weights widened to float64 at a time, where squares are summed


@dataclass(frozen=True)
class Cost:
    """What quantizing a model's matrices costs.

    Attributes:
        bits_per_weight: bits of everything stored for those matrices over their number of weights.
        nbytes: bytes of the whole model: those matrices as stored, every other tensor as its checkpoint stores it.
        sqnr_db: 10·log10(Σw² / Σ(w − ŵ)²) over all those matrices together, sums in float64; inf where none changed.
    """

    bits_per_weight: float
    nbytes: int
    sqnr_db: float


def matrix_names(model: Model, embeddings: str) -> tuple[str, ...]:
    """The matrices that quantization replaces.

    Args:
        model: the model.
        embeddings: "keep" leaves token embedding and head as they are, which is the custom of GPTQ, AWQ and
            bitsandbytes; "quantize" replaces them too, a tied pair once.

    Raises:
        UnknownNameError: another word for `embeddings`.
    """
    if embeddings not in EMBEDDINGS:
        raise unknown_name("rule for embeddings", embeddings, EMBEDDINGS)
    return model.linear_names + (model.embedding_names if embeddings == "quantize" else ())


def cost_as_stored(model: Model, embeddings: str = "keep") -> Cost:
    """The cost of the matrices that quantization would replace, as they are."""
    return _cost(model, matrix_names(model, embeddings), math.inf)


def cost_beside(model: Model, other: Model) -> Cost:
    """The cost of a model that holds the same matrices as `model`, under names of its own, embedding and head too."""
    names = matrix_names(other, "quantize")
    signal = noise = 0.0
    for ours, theirs in zip(matrix_names(model, "quantize"), names, strict=True):
        energies = _energies(model.weights[ours].dequantize(), other.weights[theirs].dequantize())
        signal, noise = signal + energies[0], noise + energies[1]
    return _cost(other, names, sqnr_db(signal, noise))


def quantize_model(model: Model, fmt: Format, embeddings: str = "keep") -> tuple[Model, Cost]:
    """Quantize a model's matrices one by one; every other weight is shared with the model given.

    Raises:
        RefquantError: a matrix that the format cannot take; the message names it.
    """
    names = matrix_names(model, embeddings)
    replaced: dict[str, QuantizedTensor] = {}
    signal = noise = 0.0
    for name in names:
        w = model.weights[name].dequantize()
        replaced[name] = encode(w, fmt, name)
        energies = _energies(w, replaced[name].dequantize())
        signal, noise = signal + energies[0], noise + energies[1]
    quantized = model.with_weights(replaced)
    return quantized, _cost(quantized, names, sqnr_db(signal, noise))


def _cost(model: Model, names: tuple[str, ...], sqnr: float) -> Cost:
    weights = model.weights
    size = sum(math.prod(weights[name].shape) for name in names)
    return Cost(
        bits_per_weight=sum(weights[name].nbytes for name in names) * 8 / size,
        nbytes=sum(weight.nbytes for weight in weights.values()),
        sqnr_db=sqnr,
    )


def _energies(w: Float32, decoded: Float32) -> tuple[float, float]:
    """Σw² and Σ(w − ŵ)² in float64."""
    signal = noise = 0.0
    flat, flat_decoded = w.ravel(), decoded.ravel()
    for begin in range(0, flat.size, SUM_BLOCK):
        a = flat[begin : begin + SUM_BLOCK].astype(np.float64)
        difference = a - flat_decoded[begin : begin + SUM_BLOCK]
        signal, noise = signal + float(a @ a), noise + float(difference @ difference)
    return signal, noise
