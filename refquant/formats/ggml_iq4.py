"""ggml's four-bit types with a table of unevenly spaced values: iq4_nl and iq4_xs (spec/ggml_iq4.md).

Both search a scale for every run of 32 weights; iq4_nl stores it, iq4_xs stores it as six bits of its block's.
"""

import numpy as np

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_search import as_columns, signed_peak, sum_positions
from refquant.formats.registry import register
from refquant.formats.rounding import nearest_int

RUN = 32  # weights that share a scale

# kvalues_iq4nl of ggml/src/ggml-common.h.
VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_MIDPOINTS = (VALUES[:-1] + VALUES[1:]) / np.float32(2)

_LEAST = np.float32(1e-15)  # GROUP_MAX_EPS: a run of smaller weights gets the scale 0
_TRIES = np.arange(-134, -119, dtype=np.float32)  # where the largest weight is tried: −127 − 7 … −127 + 7

_IQ4_NL = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
_IQ4_XS = np.dtype([("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", 128)])


def decode_iq4_nl(blocks: Blocks) -> Float32:
    """D1, D3 of the page: (blocks, 32)."""
    return _decoded(blocks["qs"], blocks["d"].astype(np.float32)[:, None])


def decode_iq4_xs(blocks: Blocks) -> Float32:
    """D1 … D3 of the page: (blocks, 256)."""
    run = np.arange(8)
    low = blocks["scales_l"].repeat(2, axis=1) >> (4 * (run % 2)).astype(np.uint8) & np.uint8(15)  # (blocks, 8)
    high = blocks["scales_h"][:, None] >> (2 * run).astype(np.uint16) & np.uint16(3)
    step = (low + (high << np.uint16(4))).astype(np.float32) - np.float32(32)
    return _decoded(blocks["qs"], blocks["d"].astype(np.float32)[:, None] * step)


def encode_iq4_nl(w: Float32) -> Blocks:
    """Q1 … Q6 and N1, N2 of the page, every weight as important as it is large."""
    x = _positions_first(w)
    return _iq4_nl(x, x * x)


def encode_iq4_nl_weighted(w: Float32, importance: Float32) -> Blocks:
    """Q1 … Q6 and N1, N2 of the page."""
    x = _positions_first(w)
    return _iq4_nl(x, _weighted(x, w, importance)).reshape(w.shape[:-1])


def encode_iq4_xs(w: Float32) -> Blocks:
    """Q1 … Q6 and X1 … X4 of the page, every weight as important as it is large."""
    x = _positions_first(w)
    return _iq4_xs(x, x * x)


def encode_iq4_xs_weighted(w: Float32, importance: Float32) -> Blocks:
    """Q1 … Q6 and X1 … X4 of the page."""
    x = _positions_first(w)
    return _iq4_xs(x, _weighted(x, w, importance)).reshape(w.shape[:-1])


def _iq4_nl(x: Float32, weight: Float32) -> Blocks:
    scale = _searched_scales(x, weight)  # (1, blocks)
    blocks = np.empty(x.shape[-1], _IQ4_NL)
    blocks["d"] = scale[0]  # N1
    blocks["qs"] = _packed(_nearest(_inverse(scale) * x))  # N2
    return blocks


def _iq4_xs(x: Float32, weight: Float32) -> Blocks:
    scales = _searched_scales(x, weight)  # (8, blocks)
    d = -signed_peak(scales) / np.float32(32)  # X1
    step = np.clip(nearest_int(_inverse(d) * scales), -32, 31)  # X2
    blocks = np.empty(x.shape[-1], _IQ4_XS)
    blocks["d"] = d
    blocks["qs"] = _packed(_nearest(_inverse(d * step.astype(np.float32)) * x))  # X3
    stored = (step + 32).T  # X4, (blocks, 8)
    low = (stored & 15).astype(np.uint8)
    blocks["scales_l"] = low[:, ::2] | low[:, 1::2] << np.uint8(4)
    blocks["scales_h"] = (stored >> 4 << 2 * np.arange(8)).sum(axis=1)
    return blocks


def _positions_first(w: Float32) -> Float32:
    """Blocks of whole runs as (32, runs, blocks): what is done position by position runs along memory."""
    size = w.shape[-1]
    return np.ascontiguousarray(w.reshape(-1, size // RUN, RUN).T)


def _weighted(x: Float32, w: Float32, importance: Float32) -> Float32:
    """Q1, Q2: the weight of every squared error, as `x`."""
    size = w.shape[-1]
    columns = as_columns(w, size)
    sigma2 = sum_positions(columns * columns) * np.float32(2 / size)
    weights: Float32 = _positions_first(np.broadcast_to(importance, w.shape)) * np.sqrt(sigma2 + x * x)
    return weights


def _searched_scales(x: Float32, weight: Float32) -> Float32:
    """Q3 … Q6: the scale of every run, (runs, blocks), for x and weight of shape (32, runs, blocks)."""
    largest = signed_peak(x)  # Q3
    inverses = np.concatenate([  # Q4, (16, runs, blocks)
        1 / (largest / np.float32(127))[None],
        _TRIES[:, None, None] / largest,
    ])  # fmt: skip
    qx, q2 = np.zeros_like(inverses), np.zeros_like(inverses)
    for column, column_weight in zip(x, weight, strict=True):  # Q5
        q = VALUES.take(_nearest(inverses * column))
        wq = column_weight * q
        qx += wq * column
        q2 += wq * q
    scale = np.where(q2[0] > 0, qx[0] / q2[0], np.float32(0))  # Q6
    score = scale * qx[0]
    for try_qx, try_q2 in zip(qx[1:], q2[1:], strict=True):
        better = (try_q2 > 0) & (try_qx * try_qx > score * try_q2)
        scale = np.where(better, try_qx / try_q2, scale)
        score = np.where(better, scale * try_qx, score)
    return np.where(np.abs(largest) < _LEAST, np.float32(0), scale)


def _nearest(x: Float32) -> UInt8:
    """The code of the value nearest to each number, the higher one at a midpoint; 15 for NaN."""
    code = np.full(x.shape, 15, np.uint8)
    for midpoint in _MIDPOINTS:  # fifteen comparisons of whole arrays are faster than a search for each number
        code -= (x < midpoint).view(np.uint8)
    return code


def _inverse(scale: Float32) -> Float32:
    """1 / scale, and 0 for 0."""
    return np.where(scale == 0, np.float32(0), 1 / scale)


def _packed(codes: UInt8) -> UInt8:
    """Codes (32, runs, blocks) as bytes (blocks, runs · 16): code j in the low half of byte j, j + 16 in the high."""
    pairs = codes[:16] | codes[16:] << np.uint8(4)
    return pairs.T.reshape(codes.shape[2], -1)


def _decoded(qs: UInt8, scale: Float32) -> Float32:
    """Bytes (blocks, runs · 16) and a scale for each run, (blocks, runs), as (blocks, runs · 32) float32."""
    runs = qs.reshape(len(qs), -1, 16)
    codes = np.concatenate([runs & np.uint8(15), runs >> np.uint8(4)], axis=-1)  # (blocks, runs, 32)
    return (scale[..., None] * VALUES.take(codes)).reshape(len(qs), -1)


IQ4_NL = GgmlType("iq4_nl", 20, 32, _IQ4_NL, decode_iq4_nl, encode_iq4_nl, encode_iq4_nl_weighted)
IQ4_XS = GgmlType("iq4_xs", 23, 256, _IQ4_XS, decode_iq4_xs, encode_iq4_xs, encode_iq4_xs_weighted)

register(GgmlFormat(IQ4_NL), GgmlFormat(IQ4_XS))
