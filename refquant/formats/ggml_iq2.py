"""ggml's iq2_xxs, iq2_xs and iq2_s: groups of eight weights as a grid point and signs (spec/ggml_iq.md)."""

import numpy as np

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_grid import GridName, grid
from refquant.formats.ggml_grid_search import Choice, GridSearch, Mask, targets
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
from refquant.formats.ggml_search_minimum import scale_search
from refquant.formats.ggml_signs import even_signs, split_even_signs, split_signs
from refquant.formats.registry import register

IQ2_XXS = np.dtype([("d", "<f2"), ("qs", "<u2", 32)])
IQ2_XS = np.dtype([("d", "<f2"), ("qs", "<u2", 32), ("scales", "u1", 8)])
IQ2_S = np.dtype([("d", "<f2"), ("qs", "u1", 64), ("qh", "u1", 8), ("scales", "u1", 8)])

_MAGNITUDES = np.array([8, 25, 43], np.float32)  # of the codes 0, 1, 2: about eight times 1, 3, 5

_LEVELS = 3
_PEAK_TARGETS = targets(_LEVELS, reach=9, step=0.1)
_FIRST_TARGETS = targets(_LEVELS, reach=6, step=0.1)
_EMPTY = np.float32(1e-15)  # a sub-block whose largest magnitude is smaller counts as zero
_EMPTY_S = np.float32(1e-8)
_FUDGE_S = np.float32(0.9875)

_QUARTER = np.float32(0.25)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)
_BLOCK = np.float32(256)

_PAIRS = np.array([0, 2, 4, 6])  # bits of a byte where the high bits of four indices begin


def encode_iq2_xxs(w: Float32, importance: Float32) -> Blocks:
    """Blocks (rows, blocks a row, 256) under an importance (blocks a row, 256)."""
    rows, (w, importance) = w.shape[:2], of_all_rows(w, importance)
    weights = as_sub_blocks(weighted_by(importance, w, sum_of_squares(w) / _BLOCK), 32)  # W1, W2
    x, signs = split_even_signs(as_sub_blocks(w, 32), weights)  # S1, S2
    first, _ = scale_search(x, weights, _LEVELS + 1)  # P2
    span = first * np.float32(_LEVELS)
    empty = (x.max(axis=0) < _EMPTY) | (span <= 0)  # P1, P2
    search = GridSearch(grid("iq2_xxs"), x, weights)
    choice = search.best_of(_FIRST_TARGETS, np.where(empty, _ONE, span), first)
    choice = search.refined(choice, np.broadcast_to(choice.scale > 0, choice.index.shape))
    scale, index, signs = settled(choice, signs, empty, len(w))
    d, codes = four_bit_scales(scale, _ONE)
    words = np.empty((len(w), 8, 2), "<u4")
    words[..., 0] = by_block(index, len(w)).astype(np.uint8).view("<u4")
    words[..., 1] = pack_even_signs(signs, codes)
    words[scale.max(axis=0) == 0] = 0  # D1
    stored = np.empty(len(w), IQ2_XXS)
    stored["d"] = d
    stored["qs"] = words.reshape(len(w), -1).view("<u2")
    return stored.reshape(rows)


def decode_iq2_xxs(blocks: Blocks) -> Float32:
    """(blocks,) structs to float32 (blocks, 256)."""
    words = np.ascontiguousarray(blocks["qs"]).view("<u4").reshape(-1, 8, 2)
    index = np.ascontiguousarray(words[..., 0]).view(np.uint8)  # (blocks, 32)
    signs, codes = unpack_even_signs(words[..., 1])
    return scaled_points("iq2_xxs", _MAGNITUDES, index, signs, _sub_scales(blocks, codes))


def encode_iq2_xs(w: Float32, importance: Float32) -> Blocks:
    """Blocks (rows, blocks a row, 256) under an importance (blocks a row, 256)."""
    rows, (w, importance) = w.shape[:2], of_all_rows(w, importance)
    weights = as_sub_blocks(weighted_by(importance, w, sum_of_squares(w) / _BLOCK), 16)  # W1, W2
    x, signs = split_even_signs(as_sub_blocks(w, 16), weights)  # S1, S2
    empty = x.max(axis=0) < _EMPTY  # P1
    scale, index, signs = settled(_from_peak("iq2_xs", x, weights, empty), signs, empty, len(w))
    d, codes = four_bit_scales(scale, _ONE)
    stored = np.empty(len(w), IQ2_XS)
    stored["d"] = d
    stored["qs"] = by_block(index | (signs & np.uint8(127)).astype(np.intp) << 9, len(w))
    stored["qs"][scale.max(axis=0) == 0] = 0  # D1
    stored["scales"] = nibble_pairs(codes)
    return stored.reshape(rows)


def decode_iq2_xs(blocks: Blocks) -> Float32:
    """(blocks,) structs to float32 (blocks, 256)."""
    index, signs = blocks["qs"] & np.uint16(511), even_signs().take(blocks["qs"] >> np.uint16(9))
    return scaled_points("iq2_xs", _MAGNITUDES, index, signs, _sub_scales(blocks, nibbles(blocks["scales"])))


def encode_iq2_s(w: Float32) -> Blocks:
    """Blocks (blocks, 256) to structs (blocks,)."""
    variance = _TWO * sum_of_squares(w) / _BLOCK
    return _encode_iq2_s(w, _QUARTER * variance[:, None] + w * w)


def encode_weighted_iq2_s(w: Float32, importance: Float32) -> Blocks:
    """Blocks (rows, blocks a row, 256) under an importance (blocks a row, 256)."""
    rows, (w, importance) = w.shape[:2], of_all_rows(w, importance)
    return _encode_iq2_s(w, weighted_by(importance, w, _TWO * sum_of_squares(w) / _BLOCK)).reshape(rows)


def _encode_iq2_s(w: Float32, weights: Float32) -> Blocks:
    x, signs = split_signs(as_sub_blocks(w, 16))  # S1
    empty = x.max(axis=0) < _EMPTY_S  # P1
    scale, index, signs = settled(_from_peak("iq2_s", x, as_sub_blocks(weights, 16), empty), signs, empty, len(w))
    d, codes = four_bit_scales(scale, _FUDGE_S)
    index = by_block(index, len(w))  # (blocks, 32)
    stored = np.empty(len(w), IQ2_S)
    stored["d"] = d
    stored["qs"][:, :32] = index & 255
    stored["qs"][:, 32:] = by_block(signs, len(w))
    stored["qh"] = ((index >> 8).reshape(-1, 8, 4) << _PAIRS).sum(axis=-1)
    stored["scales"] = nibble_pairs(codes)
    return stored


def decode_iq2_s(blocks: Blocks) -> Float32:
    """(blocks,) structs to float32 (blocks, 256)."""
    high = (blocks["qh"][:, :, None] >> _PAIRS.astype(np.uint8) & np.uint8(3)).reshape(-1, 32)
    index = blocks["qs"][:, :32] | high.astype(np.uint16) << np.uint16(8)
    signs = blocks["qs"][:, 32:]
    return scaled_points("iq2_s", _MAGNITUDES, index, signs, _sub_scales(blocks, nibbles(blocks["scales"])))


def _from_peak(name: GridName, x: Float32, weights: Float32, empty: Mask) -> Choice:
    """The search that starts from the largest magnitude; groups that were off the grid are rounded once more."""
    peak: Float32 = np.where(empty, _ONE, x.max(axis=0))
    search = GridSearch(grid(name), x, weights)
    choice = search.best_of(_PEAK_TARGETS, peak, peak / np.float32(2 * _LEVELS - 1))
    return search.refined(choice, ~choice.on_grid & (choice.scale > 0))


def _sub_scales(blocks: Blocks, codes: UInt8) -> Float32:
    """(d · (1/2 + code)) / 4 of each sub-block: (blocks, sub-blocks)."""
    return blocks["d"].astype(np.float32)[:, None] * (_HALF + codes.astype(np.float32)) * _QUARTER


register(
    GgmlFormat(GgmlType("iq2_xxs", 16, 256, IQ2_XXS, decode_iq2_xxs, None, encode_iq2_xxs, largest=2.0**59)),
    GgmlFormat(GgmlType("iq2_xs", 17, 256, IQ2_XS, decode_iq2_xs, None, encode_iq2_xs)),
    GgmlFormat(GgmlType("iq2_s", 22, 256, IQ2_S, decode_iq2_s, encode_iq2_s, encode_weighted_iq2_s)),
)
