"""ggml's q3_k: sub-blocks of 16 weights, each with a signed 6-bit scale (spec/ggml_k.md)."""

import numpy as np

from refquant.arrays import Array, Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_k import (
    LARGEST_HALF,
    SUPER_BLOCK,
    from_planes,
    half,
    importance_weights,
    in_planes,
    requantized,
    sub_block_scales,
)
from refquant.formats.ggml_search import as_columns, descent_search, signed_peak, symmetric_search
from refquant.formats.registry import register
from refquant.formats.rounding import nearest_int

_SIZE = 16
_HALF = 4  # codes are −4 … 3
_HALF_SCALE = 32  # scales are −32 … 31

_STRUCT = np.dtype([("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")])


def pack_scales(scales: UInt8) -> UInt8:
    """Sixteen 6-bit numbers s in twelve bytes.

    ```
    byte j      bits 7 … 4: s[j + 8] & 15   bits 3 … 0: s[j] & 15                                         j = 0 … 7
    byte j + 8  bits 7 6: s[j + 12] >> 4    5 4: s[j + 8] >> 4    3 2: s[j + 4] >> 4    1 0: s[j] >> 4    j = 0 … 3
    ```

    Args:
        scales: uint8 (blocks, 16), each below 64.

    Returns:
        uint8 (blocks, 12).
    """
    low = in_planes((scales & np.uint8(15)).reshape(-1, 2, 8), 2, 4)
    high = in_planes((scales >> np.uint8(4)).reshape(-1, 4, 4), 4, 2)
    return np.concatenate([low, high], axis=1)


def unpack_scales(packed: UInt8) -> UInt8:
    """The sixteen 6-bit numbers of twelve bytes: (blocks, 12) to (blocks, 16)."""
    low = from_planes(packed[:, :8], 2, 4).reshape(-1, 16)
    high = from_planes(packed[:, 8:], 4, 2).reshape(-1, 16)
    return low | (high << np.uint8(4))


def _encode(w: Float32) -> Blocks:
    x = as_columns(w, _SIZE)  # (16, sub-blocks)
    scale, found = descent_search(x, _HALF)
    peak = signed_peak(as_columns(scale, 16))
    inverse = np.float32(-_HALF_SCALE) / peak
    levels = nearest_int(inverse[:, None] * scale.reshape(-1, 16)).astype(np.int8)
    codes = np.clip(levels, -_HALF_SCALE, _HALF_SCALE - 1) + np.int8(_HALF_SCALE)
    codes[peak == 0] = 0
    blocks = np.zeros(len(w), _STRUCT)
    blocks["scales"] = pack_scales(codes.astype(np.uint8))
    blocks["d"] = half(np.where(peak == 0, np.float32(0), np.float32(1) / inverse))
    _store_codes(blocks, x, found)
    return blocks


def _encode_weighted(w: Float32, importance: Float32) -> Blocks:
    x = as_columns(w, _SIZE)  # (16, sub-blocks)
    weights, sums = importance_weights(w, importance, _SIZE, factor=2)  # W1
    scale, found = symmetric_search(x, weights, _HALF)  # W3
    d, scales = symmetric_search(as_columns(scale, 16), sums, _HALF_SCALE)  # (blocks,), (16, blocks)
    blocks = np.zeros(len(d), _STRUCT)
    blocks["scales"] = pack_scales(scales.T)
    blocks["d"] = half(d)
    _store_codes(blocks, x, found)
    return blocks.reshape(w.shape[:2])


def _store_codes(blocks: Blocks, x: Float32, found: UInt8) -> None:
    codes = requantized(x, found, _stored_scales(blocks), None, -_HALF, _HALF - 1)  # (sub-blocks, 16)
    blocks["hmask"] = in_planes((codes >> np.uint8(2)).reshape(-1, 8, 32), 8, 1)
    blocks["qs"] = in_planes((codes & np.uint8(3)).reshape(-1, 2, 4, 32), 4, 2).reshape(-1, 64)


def _stored_scales(blocks: Blocks) -> Array:
    signed = unpack_scales(blocks["scales"]).astype(np.int8) - np.int8(_HALF_SCALE)
    return sub_block_scales(blocks["d"], signed)


def _decode(blocks: Blocks) -> Float32:
    low = from_planes(blocks["qs"].reshape(-1, 2, 32), 4, 2).reshape(-1, 8, 32)
    high = from_planes(blocks["hmask"], 8, 1)
    levels = (low | (high << np.uint8(2))).astype(np.int8) - np.int8(_HALF)
    decoded: Float32 = _stored_scales(blocks)[:, :, None] * levels.reshape(-1, 16, _SIZE).astype(np.float32)
    return decoded.reshape(-1, SUPER_BLOCK)


Q3_K = GgmlType(
    name="q3_k",
    type_id=11,
    block_size=SUPER_BLOCK,
    struct=_STRUCT,
    decode=_decode,
    encode=_encode,
    encode_weighted=_encode_weighted,
    largest=LARGEST_HALF * _HALF_SCALE * _HALF,
)

register(GgmlFormat(Q3_K))
