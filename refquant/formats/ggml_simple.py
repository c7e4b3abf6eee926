"""ggml's types with one scale a block: q1_0 q2_0 q4_0 q4_1 q5_0 q5_1 q8_0 q8_1 (spec/ggml_simple.md).

With an importance matrix q4_0, q4_1, q5_0 and q5_1 are encoded by the searches of `ggml_search`.
"""

from functools import partial

import numpy as np

from refquant.arrays import Array, Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_search import as_columns, sum_positions, symmetric_search
from refquant.formats.ggml_search_minimum import WEIGHTED_TRIALS, minimum_search
from refquant.formats.registry import register
from refquant.formats.rounding import round_half_away

Q1_0_STRUCT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
Q2_0_STRUCT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
Q4_0_STRUCT = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
Q4_1_STRUCT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
Q5_0_STRUCT = np.dtype([("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
Q5_1_STRUCT = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)])
Q8_0_STRUCT = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
Q8_1_STRUCT = np.dtype([("d", "<f2"), ("s", "<f2"), ("qs", "i1", 32)])


def inverse(d: Float32) -> tuple[Float32, Array]:
    """1 / d, 0 where d is 0; and where C leaves the codes open, because 1 / d or d itself is infinite."""
    r = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)
    return r, np.isinf(r) | np.isinf(d)


def largest(w: Float32) -> Float32:
    """The first number of the largest magnitude of each block, (blocks, 1); +0 for a block of zeros of either sign."""
    first = np.abs(w).argmax(axis=1)[:, None]
    return np.take_along_axis(w, first, axis=1) + np.float32(0)


def _store_codes(blocks: Blocks, codes: UInt8) -> None:
    """Weights j and j + 16 share byte j of `qs`; a fifth bit is bit j of the little-endian word `qh`."""
    blocks["qs"] = codes[:, :16] & 15 | codes[:, 16:] << 4
    if "qh" in (blocks.dtype.names or ()):
        blocks["qh"] = np.packbits(codes >> 4, axis=1, bitorder="little")  # (blocks, 32) to (blocks, 4)


def _codes(blocks: Blocks) -> UInt8:
    qs = blocks["qs"]
    codes: UInt8 = np.concatenate([qs & 15, qs >> 4], axis=1)  # (blocks, 32)
    if "qh" in (blocks.dtype.names or ()):
        codes |= np.unpackbits(blocks["qh"], axis=1, bitorder="little") << 4
    return codes


def _encode_symmetric(w: Float32, struct: np.dtype[np.void], half: int) -> Blocks:
    blocks = np.empty(len(w), struct)
    d = largest(w) / np.float32(-half)
    r, undefined = inverse(d)
    scaled = w * r
    scaled += np.float32(half + 0.5)
    codes = np.fmin(scaled, np.float32(2 * half - 1), out=scaled).astype(np.uint8)  # a cast truncates
    codes[undefined[:, 0]] = 0
    blocks["d"] = d[:, 0]
    _store_codes(blocks, codes)
    return blocks


def _decode_symmetric(blocks: Blocks, half: int) -> Float32:
    w = _codes(blocks).astype(np.float32)
    w -= np.float32(half)
    w *= blocks["d"].astype(np.float32)[:, None]
    return w


def _encode_with_minimum(w: Float32, struct: np.dtype[np.void], top: int) -> Blocks:
    blocks = np.empty(len(w), struct)
    # The first of zeros of both signs is the minimum: argmin finds it, min need not. d is +0 for a block of equals.
    low = np.take_along_axis(w, w.argmin(axis=1)[:, None], axis=1)  # (blocks, 1)
    d = (w.max(axis=1, keepdims=True) - low + np.float32(0)) / np.float32(top)
    r, undefined = inverse(d)
    scaled = w - low
    scaled *= r
    scaled += np.float32(0.5)
    codes = np.fmin(scaled, np.float32(top), out=scaled).astype(np.uint8)  # a cast truncates
    codes[undefined[:, 0]] = 0
    blocks["d"], blocks["m"] = d[:, 0], low[:, 0]
    _store_codes(blocks, codes)
    return blocks


def _decode_with_minimum(blocks: Blocks) -> Float32:
    w = _codes(blocks).astype(np.float32)
    w *= blocks["d"].astype(np.float32)[:, None]
    w += blocks["m"].astype(np.float32)[:, None]
    return w


def _importance_columns(w: Float32, importance: Float32) -> Float32:
    """importance · √(σ² + w²), with σ² the mean square of the row, laid out as the searches want it: (32, blocks)."""
    squares = w * w  # (rows, blocks a row, 32)
    sums = np.add.accumulate(squares.reshape(len(w), -1), axis=1)[:, -1]  # in order, not pairwise
    squares += (sums / np.float32(w[0].size))[:, None, None]
    np.sqrt(squares, out=squares)
    squares *= importance
    return as_columns(squares, 32)


def _encode_symmetric_weighted(w: Float32, importance: Float32, struct: np.dtype[np.void], half: int) -> Blocks:
    blocks = np.empty(w.size // 32, struct)
    blocks["d"], codes = symmetric_search(as_columns(w, 32), _importance_columns(w, importance), half)
    _store_codes(blocks, codes.T)
    return blocks.reshape(w.shape[:-1])


def _encode_with_minimum_weighted(w: Float32, importance: Float32, struct: np.dtype[np.void], top: int) -> Blocks:
    blocks = np.empty(w.size // 32, struct)
    weights = _importance_columns(w, importance)
    blocks["d"], blocks["m"], codes = minimum_search(as_columns(w, 32), weights, top, WEIGHTED_TRIALS)
    _store_codes(blocks, codes.T)
    return blocks.reshape(w.shape[:-1])


def _encode_q8(w: Float32, struct: np.dtype[np.void]) -> Blocks:
    blocks = np.empty(len(w), struct)
    d = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    r, undefined = inverse(d)
    r[undefined] = 0
    codes = round_half_away(w * r).astype(np.int8)
    blocks["d"], blocks["qs"] = d[:, 0], codes
    if "s" in (struct.names or ()):
        blocks["s"] = codes.sum(axis=1, dtype=np.int32).astype(np.float32) * d[:, 0]
    return blocks


def _decode_q8(blocks: Blocks) -> Float32:
    return blocks["qs"] * blocks["d"].astype(np.float32)[:, None]


def _encode_q1_0(w: Float32) -> Blocks:
    blocks = np.empty(len(w), Q1_0_STRUCT)
    blocks["d"] = sum_positions(as_columns(np.abs(w), 128)) / np.float32(128)
    blocks["qs"] = np.packbits(w >= 0, axis=1, bitorder="little")  # (blocks, 128) to (blocks, 16)
    return blocks


def _decode_q1_0(blocks: Blocks) -> Float32:
    d = blocks["d"].astype(np.float32)[:, None]
    return np.where(np.unpackbits(blocks["qs"], axis=1, bitorder="little").view(np.bool_), d, -d)


def _encode_q2_0(w: Float32) -> Blocks:
    blocks = np.empty(len(w), Q2_0_STRUCT)
    d = np.abs(w).max(axis=1, keepdims=True)
    r, undefined = inverse(d)
    codes = round_half_away(w * np.where(undefined, np.float32(0), r)).astype(np.int8).view(np.uint8) + np.uint8(1)
    codes[undefined[:, 0]] = 0
    fours = codes.reshape(-1, 16, 4)
    blocks["d"] = d[:, 0]
    blocks["qs"] = fours[..., 0] | fours[..., 1] << 2 | fours[..., 2] << 4 | fours[..., 3] << 6
    return blocks


def _decode_q2_0(blocks: Blocks) -> Float32:
    codes = blocks["qs"][..., None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3  # (blocks, 16, 4)
    w = codes.reshape(-1, 64).astype(np.float32)
    w -= np.float32(1)
    w *= blocks["d"].astype(np.float32)[:, None]
    return w


Q1_0 = GgmlType(name="q1_0", type_id=41, block_size=128, struct=Q1_0_STRUCT, decode=_decode_q1_0, encode=_encode_q1_0)
Q2_0 = GgmlType(name="q2_0", type_id=42, block_size=64, struct=Q2_0_STRUCT, decode=_decode_q2_0, encode=_encode_q2_0)
Q4_0 = GgmlType(
    name="q4_0",
    type_id=2,
    block_size=32,
    struct=Q4_0_STRUCT,
    decode=partial(_decode_symmetric, half=8),
    encode=partial(_encode_symmetric, struct=Q4_0_STRUCT, half=8),
    encode_weighted=partial(_encode_symmetric_weighted, struct=Q4_0_STRUCT, half=8),
)
Q4_1 = GgmlType(
    name="q4_1",
    type_id=3,
    block_size=32,
    struct=Q4_1_STRUCT,
    decode=_decode_with_minimum,
    encode=partial(_encode_with_minimum, struct=Q4_1_STRUCT, top=15),
    encode_weighted=partial(_encode_with_minimum_weighted, struct=Q4_1_STRUCT, top=15),
)
Q5_0 = GgmlType(
    name="q5_0",
    type_id=6,
    block_size=32,
    struct=Q5_0_STRUCT,
    decode=partial(_decode_symmetric, half=16),
    encode=partial(_encode_symmetric, struct=Q5_0_STRUCT, half=16),
    encode_weighted=partial(_encode_symmetric_weighted, struct=Q5_0_STRUCT, half=16),
)
Q5_1 = GgmlType(
    name="q5_1",
    type_id=7,
    block_size=32,
    struct=Q5_1_STRUCT,
    decode=_decode_with_minimum,
    encode=partial(_encode_with_minimum, struct=Q5_1_STRUCT, top=31),
    encode_weighted=partial(_encode_with_minimum_weighted, struct=Q5_1_STRUCT, top=31),
)
Q8_0 = GgmlType(
    name="q8_0",
    type_id=8,
    block_size=32,
    struct=Q8_0_STRUCT,
    decode=_decode_q8,
    encode=partial(_encode_q8, struct=Q8_0_STRUCT),
)
Q8_1 = GgmlType(
    name="q8_1",
    type_id=9,
    block_size=32,
    struct=Q8_1_STRUCT,
    decode=_decode_q8,
    encode=partial(_encode_q8, struct=Q8_1_STRUCT),
)

register(*(GgmlFormat(kind) for kind in (Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1)))
