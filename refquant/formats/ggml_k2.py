"""ggml's q2_k: sub-blocks of 16 weights, each with a 4-bit scale and a 4-bit minimum in one byte (spec/ggml_k.md)."""

import numpy as np

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_k import (
    LARGEST_HALF,
    SUPER_BLOCK,
    from_planes,
    half,
    importance_weights,
    in_planes,
    in_steps,
    largest_of,
    requantized,
    sub_block_scales,
)
from refquant.formats.ggml_search import as_columns
from refquant.formats.ggml_search_minimum import WEIGHTED_TRIALS, Trials, minimum_search, scale_search
from refquant.formats.registry import register

_SIZE = 16
_TOP = 3
_TOP_SCALE = 15
_TRIALS = Trials(-0.5, 0.1, 15)

_STRUCT = np.dtype([("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")])


def _encode(w: Float32) -> Blocks:
    x = as_columns(w, _SIZE)  # (16, sub-blocks)
    scale, minimum, found = minimum_search(x, np.abs(x), _TOP, _TRIALS, loss=np.abs)  # E1, E2
    scales, minima = scale.reshape(-1, 16), -minimum.reshape(-1, 16)
    largest, deepest = largest_of(scales), largest_of(minima)  # E3
    blocks = np.zeros(len(w), _STRUCT)
    # E4
    blocks["scales"] = _pack_scales(in_steps(scales, largest, _TOP_SCALE), in_steps(minima, deepest, _TOP_SCALE))
    blocks["d"] = half(largest / np.float32(_TOP_SCALE))
    blocks["dmin"] = half(deepest / np.float32(_TOP_SCALE))
    _store_codes(blocks, x, found)
    return blocks


def _encode_weighted(w: Float32, importance: Float32) -> Blocks:
    x = as_columns(w, _SIZE)  # (16, sub-blocks)
    weights, sums = importance_weights(w, importance, _SIZE, factor=1)  # W1
    scale, minimum, found = minimum_search(x, weights, _TOP, WEIGHTED_TRIALS)  # W2
    d, scales = scale_search(as_columns(scale, 16), sums, _TOP_SCALE)  # (blocks,), (16, blocks)
    dmin, minima = scale_search(as_columns(-minimum, 16), sums, _TOP_SCALE)
    blocks = np.zeros(len(d), _STRUCT)
    blocks["scales"] = _pack_scales(scales.T, minima.T)
    blocks["d"], blocks["dmin"] = half(d), half(dmin)
    _store_codes(blocks, x, found)
    return blocks.reshape(w.shape[:2])


def _pack_scales(scales: UInt8, minima: UInt8) -> UInt8:
    """The scale in the low nibble; one beyond 15, from a negative number modulo 256, runs into the minimum as in C."""
    packed: UInt8 = scales | (minima << np.uint8(4))
    return packed


def _store_codes(blocks: Blocks, x: Float32, found: UInt8) -> None:
    codes = requantized(x, found, *_stored_scales(blocks), 0, _TOP)  # E5; (sub-blocks, 16)
    blocks["qs"] = in_planes(codes.reshape(-1, 2, 4, 32), 4, 2).reshape(-1, 64)


def _stored_scales(blocks: Blocks) -> tuple[Float32, Float32]:
    packed = blocks["scales"]
    return sub_block_scales(blocks["d"], packed & 15), sub_block_scales(blocks["dmin"], packed >> np.uint8(4))


def _decode(blocks: Blocks) -> Float32:
    codes = from_planes(blocks["qs"].reshape(-1, 2, 32), 4, 2).reshape(-1, 16, _SIZE)
    scale, minimum = _stored_scales(blocks)  # (blocks, 16) each
    decoded: Float32 = scale[:, :, None] * codes.astype(np.float32) - minimum[:, :, None]
    return decoded.reshape(-1, SUPER_BLOCK)


Q2_K = GgmlType(
    name="q2_k",
    type_id=10,
    block_size=SUPER_BLOCK,
    struct=_STRUCT,
    decode=_decode,
    encode=_encode,
    encode_weighted=_encode_weighted,
    largest=LARGEST_HALF * _TOP_SCALE * _TOP,
)

register(GgmlFormat(Q2_K))
