"""ggml's iq3_xxs and iq3_s: groups of four weights as a grid point, and signs of eight (spec/ggml_iq.md)."""

import numpy as np

from refquant.arrays import Array, Float32
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_grid import grid
from refquant.formats.ggml_grid_search import GridSearch, Mask, targets
from refquant.formats.ggml_iq_blocks import (
    as_sub_blocks,
    by_block,
    four_bit_scales,
    nibble_pairs,
    nibbles,
    of_all_rows,
    pack_even_signs,
    scaled_points,
    settled,
    sum_of_squares,
    unpack_even_signs,
    weighted_by,
)
from refquant.formats.ggml_signs import split_even_signs, split_signs
from refquant.formats.registry import register

IQ3_XXS = np.dtype([("d", "<f2"), ("qs", "u1", 96)])
IQ3_S = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("signs", "u1", 32), ("scales", "u1", 4)])

_MAGNITUDES_XXS = np.array([4, 12, 20, 28, 36, 44, 52, 62], np.float32)  # about four times 1, 3, 5, …, 15
_MAGNITUDES_S = np.array([1, 3, 5, 7, 9, 11, 13, 15], np.float32)

_LEVELS = 8
_PEAK = np.float32(2 * _LEVELS - 1)
_TARGETS_XXS = targets(_LEVELS, reach=15, step=0.2)
_TARGETS_S = targets(_LEVELS, reach=9, step=0.2)
_EMPTY_XXS = np.float32(1e-8)  # a sub-block whose largest magnitude is smaller counts as zero
_FUDGE_XXS = np.float32(1.0125)
_FUDGE_S = np.float32(1.033)

_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)
_BLOCK = np.float32(256)


def encode_iq3_xxs(w: Float32) -> Blocks:
    """Blocks (blocks, 256) to structs (blocks,)."""
    return _encode_iq3_xxs(w, w * w)


def encode_weighted_iq3_xxs(w: Float32, importance: Float32) -> Blocks:
    """Blocks (rows, blocks a row, 256) under an importance (blocks a row, 256)."""
    return _encode_iq3_xxs(*_weighted(w, importance)).reshape(w.shape[:2])


def _encode_iq3_xxs(w: Float32, weights: Float32) -> Blocks:
    weights = as_sub_blocks(weights, 32)
    x, signs = split_even_signs(as_sub_blocks(w, 32), weights)  # S1, S2
    empty = x.max(axis=0) < _EMPTY_XXS  # P1
    peak: Float32 = np.where(empty, _ONE, x.max(axis=0))
    search = GridSearch(grid("iq3_xxs"), x, weights)
    choice = search.best_of(_TARGETS_XXS, peak, peak / _PEAK)
    choice = search.refined(choice, ~choice.on_grid & (choice.scale > 0))
    scale, index, signs = settled(choice, signs, empty, len(w))
    d, codes = four_bit_scales(scale, _FUDGE_XXS)
    stored = np.empty(len(w), IQ3_XXS)
    stored["d"] = d
    stored["qs"][:, :64] = by_block(index, len(w))
    words = np.ascontiguousarray(pack_even_signs(signs, codes), "<u4")
    stored["qs"][:, 64:] = words.view(np.uint8)
    stored["qs"][scale.max(axis=0) == 0] = 0  # D1
    return stored


def decode_iq3_xxs(blocks: Blocks) -> Float32:
    """(blocks,) structs to float32 (blocks, 256)."""
    signs, codes = unpack_even_signs(np.ascontiguousarray(blocks["qs"][:, 64:]).view("<u4"))
    scale = blocks["d"].astype(np.float32)[:, None] * (_HALF + codes.astype(np.float32)) * _HALF
    return scaled_points("iq3_xxs", _MAGNITUDES_XXS, blocks["qs"][:, :64], signs, scale)


def encode_iq3_s(w: Float32) -> Blocks:
    """Blocks (blocks, 256) to structs (blocks,)."""
    return _encode_iq3_s(w, w * w)


def encode_weighted_iq3_s(w: Float32, importance: Float32) -> Blocks:
    """Blocks (rows, blocks a row, 256) under an importance (blocks a row, 256)."""
    return _encode_iq3_s(*_weighted(w, importance)).reshape(w.shape[:2])


def _encode_iq3_s(w: Float32, weights: Float32) -> Blocks:
    x, signs = split_signs(as_sub_blocks(w, 32))  # S1
    empty = x.max(axis=0) == 0  # P1
    peak: Float32 = np.where(empty, _ONE, x.max(axis=0))
    search = GridSearch(grid("iq3_s"), x, as_sub_blocks(weights, 32))
    choice = search.best_of(_TARGETS_S, peak, peak / _PEAK)
    again = (choice.scale > 0) & ~(choice.on_grid.all(axis=0) & choice.explained)
    choice = search.refined(choice, np.broadcast_to(again, choice.index.shape))
    scale, index, signs = settled(choice, signs, empty, len(w))
    d, codes = four_bit_scales(scale, _FUDGE_S)
    index = by_block(index, len(w))  # (blocks, 64)
    stored = np.empty(len(w), IQ3_S)
    stored["d"] = d
    stored["qs"] = _closed_up(index & 255, empty)
    stored["qh"] = np.packbits(index >> 8, axis=1, bitorder="little")
    stored["signs"] = _closed_up(by_block(signs, len(w)), empty)
    stored["scales"] = nibble_pairs(codes)
    return stored


def _closed_up(groups: Array, empty: Mask) -> Array:
    """Groups (blocks, 8 · n) of sub-blocks, with those of empty ones after all others.

    ggml does not move on in `qs` and `signs` where it skips an empty sub-block, but does so in `qh` and `scales`.
    """
    blocks = len(groups)
    order = np.argsort(empty.reshape(8, blocks).T, axis=1, kind="stable")
    return np.take_along_axis(groups.reshape(blocks, 8, -1), order[:, :, None], axis=1).reshape(blocks, -1)


def decode_iq3_s(blocks: Blocks) -> Float32:
    """(blocks,) structs to float32 (blocks, 256)."""
    high = np.unpackbits(blocks["qh"], axis=1, bitorder="little")  # (blocks, 64)
    index = blocks["qs"] | high.astype(np.uint16) << np.uint16(8)
    odd = 2 * nibbles(blocks["scales"]) + np.uint8(1)
    scale = blocks["d"].astype(np.float32)[:, None] * odd.astype(np.float32)
    return scaled_points("iq3_s", _MAGNITUDES_S, index, blocks["signs"], scale)


def _weighted(w: Float32, importance: Float32) -> tuple[Float32, Float32]:
    """The blocks of all rows, and the weights of their search: (blocks, 256)."""
    w, importance = of_all_rows(w, importance)
    return w, weighted_by(importance, w, _TWO * sum_of_squares(w) / _BLOCK)  # W1, W2


register(
    GgmlFormat(GgmlType("iq3_xxs", 18, 256, IQ3_XXS, decode_iq3_xxs, encode_iq3_xxs, encode_weighted_iq3_xxs)),
    GgmlFormat(GgmlType("iq3_s", 21, 256, IQ3_S, decode_iq3_s, encode_iq3_s, encode_weighted_iq3_s)),
)
