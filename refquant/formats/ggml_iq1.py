"""ggml's types of one and a half bits: iq1_s and iq1_m (spec/ggml_iq1.md).

Eight weights are a point of a grid of 2048, moved up or down by an eighth; runs of 32 or 16 share a scale of three
bits, 256 a scale in float16.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array, Float32
from refquant.formats.ggml import BlockError, Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_grid import Indices, grid, grid_points
from refquant.formats.ggml_iq1_search import LEVELS, Snapped, Split, one_shift, snap, two_shifts
from refquant.formats.ggml_search import as_columns, sum_positions
from refquant.formats.registry import register
from refquant.formats.rounding import nearest_int

_IQ1_S = np.dtype([("d", "<f2"), ("qs", "u1", 32), ("qh", "<u2", 8)])
_IQ1_M = np.dtype([("qs", "u1", 32), ("qh", "u1", 16), ("scales", "u1", 8)])

_THREES = np.array([0, 3, 6, 9], np.uint16)  # where fields of three bits begin
_FOURS = np.array([0, 4, 8, 12], np.uint16)

# GROUP_MAX_EPS_IQ1_S and _IQ1_M: a run of smaller weights gets the scale 0.
_LEAST_S = np.float32(1e-12)
_LEAST_M = np.float32(1e-7)

# What the scale is multiplied with at the end, to make up for what the grid cannot reach.
_FUDGE_S = np.float32(1.125)
_FUDGE_M = np.float32(1.1125)


def decode_iq1_s(blocks: Blocks) -> Float32:
    """(blocks, 256)."""
    qh = blocks["qh"]  # (blocks, 8)
    step = (2 * (qh >> np.uint16(12) & np.uint16(7)) + 1).astype(np.float32)
    scale = blocks["d"].astype(np.float32)[:, None] * step
    high = qh[:, :, None] >> _THREES & np.uint16(7)  # (blocks, 8, 4)
    index = blocks["qs"].reshape(-1, 8, 4) | high.astype(np.intp) << 8
    index += (qh >> np.uint16(15)).astype(np.intp)[:, :, None] << 11
    return _scaled(index, scale)


def decode_iq1_m(blocks: Blocks) -> Float32:
    """(blocks, 256)."""
    words = blocks["scales"].view("<u2")  # (blocks, 4)
    steps = words[:, :, None] >> _THREES & np.uint16(7)  # (blocks, 4, 4)
    scale = block_scale_iq1_m(blocks).astype(np.float32)[:, None] * (2 * steps + 1).astype(np.float32).reshape(-1, 16)
    nibbles = blocks["qh"][:, :, None] >> np.array([0, 4], np.uint8)  # (blocks, 16, 2)
    index = blocks["qs"].reshape(-1, 16, 2) | (nibbles & np.uint8(15)).astype(np.intp) << 8  # bit 3 is the shift
    return _scaled(index, scale)


def _scaled(index: Indices, scale: Float32) -> Float32:
    """Shifted points (blocks, runs, groups) times their run's scale: (blocks, 256)."""
    numbers: Float32 = _shifted_points()[index] * scale[:, :, None, None]
    return numbers.reshape(len(index), 256)


def block_scale_iq1_m(blocks: Blocks) -> npt.NDArray[np.float16]:
    """The float16 whose four nibbles are the top bits of the four words of `scales`, the lowest first: (blocks,)."""
    top = blocks["scales"].view("<u2") >> np.uint16(12)  # (blocks, 4)
    scale: npt.NDArray[np.float16] = (top << _FOURS).sum(axis=1, dtype=np.uint16).view(np.float16)
    return scale


def encode_iq1_s_weighted(w: Float32, importance: Float32) -> Blocks:
    """Steps W, S, G and B of the page."""
    x, sigma2 = _positions_first(w, 32), _sigma2(w)  # (32, 8, blocks)
    weight = _importances(x, sigma2, _positions_first(np.broadcast_to(importance, w.shape), 32))
    runs, run_weights = x.reshape(32, -1), weight.reshape(32, -1)
    split = one_shift(runs, run_weights)
    down = np.broadcast_to(split.shift == 1, (4, runs.shape[1]))
    snapped = snap(runs, run_weights, split, down, grid("iq1"))
    live = _live(runs, _LEAST_S, split, snapped, x.shape[2])
    scales = np.where(live, snapped.scale, np.float32(0)).reshape(8, -1)
    index = np.where(live, snapped.point, 0).reshape(4, 8, -1)
    largest = scales.max(axis=0)
    d = largest / np.float32(15)  # B1
    step = _steps(d, scales)  # B2
    blocks = np.zeros(x.shape[2], _IQ1_S)
    blocks["d"] = d * _FUDGE_S  # B3
    blocks["qs"] = (index & 255).T.reshape(-1, 32)  # (blocks, 8, 4)
    high = (index >> 8 << 3 * np.arange(4)[:, None, None]).sum(axis=0)  # (8, blocks)
    moved = (live & down[0]).reshape(8, -1) & (largest != 0)
    blocks["qh"] = (high | np.where(largest != 0, step, 0) << 12 | moved.astype(np.intp) << 15).T
    return blocks.reshape(w.shape[:-1])


def encode_iq1_m(w: Float32) -> Blocks:
    """Steps W, M, G and C of the page, every weight as important as it is large."""
    x = _positions_first(w, 16)
    return _iq1_m(x, x * x)


def encode_iq1_m_weighted(w: Float32, importance: Float32) -> Blocks:
    """Steps W, M, G and C of the page."""
    x, sigma2 = _positions_first(w, 16), _sigma2(w)  # (16, 16, blocks)
    weight = _importances(x, sigma2, _positions_first(np.broadcast_to(importance, w.shape), 16))
    return _iq1_m(x, weight).reshape(w.shape[:-1])


def _iq1_m(x: Float32, weight: Float32) -> Blocks:
    runs, run_weights = x.reshape(16, -1), weight.reshape(16, -1)
    split = two_shifts(runs, run_weights)
    down = np.stack([split.shift >= 2, split.shift % 2 == 1])  # (2, runs)
    snapped = snap(runs, run_weights, split, down, grid("iq1"))
    live = _live(runs, _LEAST_M, split, snapped, x.shape[2])
    scales = np.where(live, snapped.scale, np.float32(0)).reshape(16, -1)
    index = np.where(live, snapped.point, 0).reshape(2, 16, -1)
    largest = scales.max(axis=0)
    d = largest / np.float32(15)  # C1
    step = _steps(d, scales)  # C2, (16, blocks)
    moved = (live & down).reshape(2, 16, -1) & (largest != 0)
    qx, q2 = _whole_fit(x, weight, index, moved, step)  # C3
    d = np.where(q2 > 0, qx / q2, d) * _FUDGE_M  # C4
    blocks = np.zeros(x.shape[2], _IQ1_M)
    blocks["qs"] = (index & 255).T.reshape(-1, 32)  # (blocks, 16, 2)
    nibbles = index >> 8 | moved.astype(np.intp) << 3  # (2, 16, blocks)
    blocks["qh"] = (nibbles[0] | nibbles[1] << 4).T
    words = (step.reshape(4, 4, -1) << 3 * np.arange(4)[:, None]).sum(axis=1)  # (4, blocks)
    words |= (d.astype(np.float16).view(np.uint16) >> 4 * np.arange(4)[:, None] & 15) << 12
    words = np.where(largest != 0, words, 0)
    blocks["scales"] = np.ascontiguousarray(words.T, "<u2").view(np.uint8)
    return blocks


def _sigma2(w: Float32) -> Float32:
    """W1: twice the mean square of each block, (blocks,)."""
    x = as_columns(w, 256)
    return np.float32(2) * sum_positions(x * x) / np.float32(256)


def _importances(x: Float32, sigma2: Float32, importance: Float32) -> Float32:
    """W2: the weight of every squared error, as `x`."""
    return importance * np.sqrt(sigma2 + x * x)


def _live(runs: Float32, least: np.float32, split: Split, snapped: Snapped, blocks: int) -> npt.NDArray[np.bool_]:
    """Which runs get a scale and grid points; the others get zeros.

    Raises:
        BlockError: ggml gives up on a run.
    """
    live: npt.NDArray[np.bool_] = (np.abs(runs).max(axis=0) >= least) & split.found
    broken = (live & (snapped.lost | np.isnan(snapped.scale))).reshape(-1, blocks).any(axis=0)
    if broken.any():
        raise BlockError(int(np.argmax(broken)), "its weighted squares overflow float32, and ggml aborts there")
    return live


def _steps(d: Float32, scales: Float32) -> npt.NDArray[np.intp]:
    """B2, C2: the odd multiples 2·step + 1 of d that scales are stored as: 0 … 7."""
    nearest = nearest_int(np.float32(0.5) * (np.float32(1) / d * scales - np.float32(1)))
    return np.clip(nearest, 0, 7).astype(np.intp)


def _whole_fit(x: Float32, weight: Float32, index: Indices, moved: Array, step: Indices) -> tuple[Float32, Float32]:
    """Σ w·q·x and Σ w·q² of each block in order, q being levels times their runs' steps: (blocks,)."""
    qx, q2 = np.zeros((2, x.shape[2]), np.float32)
    odd = (2 * step + 1).astype(np.float32)
    points = _shifted_points()
    for run in range(16):
        for group in range(2):
            q8 = points[index[group, run] + (moved[group, run] << 11)] * odd[run][:, None]  # (blocks, 8)
            some = slice(8 * group, 8 * group + 8)
            for q, column, column_weight in zip(q8.T, x[some, run], weight[some, run], strict=True):
                wq = column_weight * q
                qx += wq * column
                q2 += wq * q
    return qx, q2


def _positions_first(w: Float32, run: int) -> Float32:
    """Blocks as (run, runs, blocks): what is done position by position runs along memory."""
    return np.ascontiguousarray(w.reshape(-1, w.shape[-1] // run, run).T)


@cache
def _shifted_points() -> Float32:
    """What grid points stand for, moved up (0 … 2047) and down (2048 … 4095): (4096, 8)."""
    values = LEVELS[:, grid_points("iq1")].reshape(-1, 8)
    values.flags.writeable = False
    return values


IQ1_S = GgmlType("iq1_s", 19, 256, _IQ1_S, decode_iq1_s, None, encode_iq1_s_weighted)
IQ1_M = GgmlType("iq1_m", 29, 256, _IQ1_M, decode_iq1_m, encode_iq1_m, encode_iq1_m_weighted, block_scale_iq1_m)

register(GgmlFormat(IQ1_S), GgmlFormat(IQ1_M))
