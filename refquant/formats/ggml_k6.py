"""ggml's q6_k: sub-blocks of 16 weights, each with a signed 8-bit scale (spec/ggml_k.md)."""

import numpy as np

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_k import (
    LARGEST_HALF,
    SUPER_BLOCK,
    from_planes,
    half,
    in_planes,
    requantized,
    sub_block_scales,
)
from refquant.formats.ggml_search import ZERO_BELOW, as_columns, signed_peak, symmetric_search
from refquant.formats.registry import register
from refquant.formats.rounding import nearest_int

_SIZE = 16
_HALF = 32  # codes are −32 … 31
_HALF_SCALE = 128

_STRUCT = np.dtype([("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")])


def _encode(w: Float32) -> Blocks:
    x = as_columns(w, _SIZE)  # (16, sub-blocks)
    return _encode_columns(x, np.square(x))


def _encode_weighted(w: Float32, importance: Float32) -> Blocks:
    weights = np.broadcast_to(importance, w.shape)  # W4
    return _encode_columns(as_columns(w, _SIZE), as_columns(weights, _SIZE)).reshape(w.shape[:2])


def _encode_columns(x: Float32, weights: Float32) -> Blocks:
    scale, found = symmetric_search(x, weights, _HALF)
    peak = signed_peak(as_columns(scale, 16))  # (blocks,)
    inverse = np.float32(-_HALF_SCALE) / peak
    blocks = np.zeros(len(peak), _STRUCT)
    blocks["d"] = half(np.float32(1) / inverse)
    levels = nearest_int(inverse[:, None] * scale.reshape(-1, 16))
    blocks["scales"] = np.minimum(levels, _HALF_SCALE - 1).astype(np.int8)
    _store_codes(blocks, x, found)
    blocks[np.abs(peak) < ZERO_BELOW] = np.zeros((), _STRUCT)
    return blocks


def _store_codes(blocks: Blocks, x: Float32, found: UInt8) -> None:
    codes = requantized(x, found, sub_block_scales(blocks["d"], blocks["scales"]), None, -_HALF, _HALF - 1)
    quarters = codes.reshape(-1, 2, 4, 32)  # (blocks, halves, quarters, 32)
    low = (quarters & np.uint8(15)).reshape(-1, 2, 2, 64)  # the first two quarters, and the last two
    blocks["ql"] = in_planes(low, 2, 4).reshape(-1, 128)
    blocks["qh"] = in_planes(quarters >> np.uint8(4), 4, 2).reshape(-1, 64)


def _decode(blocks: Blocks) -> Float32:
    low = from_planes(blocks["ql"].reshape(-1, 2, 64), 2, 4).reshape(-1, 2, 4, 32)
    high = from_planes(blocks["qh"].reshape(-1, 2, 32), 4, 2)
    levels = (low | (high << np.uint8(4))).astype(np.int8) - np.int8(_HALF)
    scale = sub_block_scales(blocks["d"], blocks["scales"])  # (blocks, 16)
    decoded: Float32 = scale[:, :, None] * levels.reshape(-1, 16, _SIZE).astype(np.float32)
    return decoded.reshape(-1, SUPER_BLOCK)


Q6_K = GgmlType(
    name="q6_k",
    type_id=14,
    block_size=SUPER_BLOCK,
    struct=_STRUCT,
    decode=_decode,
    encode=_encode,
    encode_weighted=_encode_weighted,
    largest=LARGEST_HALF * _HALF_SCALE * _HALF,
)

register(GgmlFormat(Q6_K))
