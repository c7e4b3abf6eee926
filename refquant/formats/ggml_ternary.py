"""ggml's ternary types tq1_0 and tq2_0: −1, 0 and 1 times the largest magnitude (spec/ggml_ternary.md).

tq2_0 stores a weight in two bits. tq1_0 stores five weights in a byte, as a fraction of 256: multiplying the byte by
3 moves its first digit in base 3 out at the top.
"""

import numpy as np

from refquant.arrays import Float32, UInt8
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_simple import inverse
from refquant.formats.registry import register
from refquant.formats.rounding import round_half_away

TQ1_0_STRUCT = np.dtype([("qs", "u1", 48), ("qh", "u1", 4), ("d", "<f2")])
TQ2_0_STRUCT = np.dtype([("qs", "u1", 64), ("d", "<f2")])

# Runs of tq1_0: weights and bytes start where the run before ended; digit i of byte j is weight i · bytes + j.
_RUNS = ((5, 32), (5, 16), (4, 4))  # digits a byte, bytes

_PLACES = np.array([81, 27, 9, 3, 1], np.uint8)


def _digits() -> Float32:
    """What the five ternary digits of every byte stand for, −1, 0 or 1: (5, 256)."""
    fraction = np.arange(256) * 3 ** np.arange(5)[:, None] % 256
    return ((fraction * 3 >> 8) - 1).astype(np.float32)


_DIGITS = _digits()
_BYTE = ((np.arange(243) * 256 + 242) // 243).astype(np.uint8)  # of a number below 3^5: rounded up


def _ternary(w: Float32) -> tuple[Float32, UInt8]:
    """The largest magnitude of each block, and the codes 0, 1, 2 for −1, 0, 1."""
    d = np.abs(w).max(axis=1, keepdims=True)
    r, undefined = inverse(d)
    codes = round_half_away(w * np.where(undefined, np.float32(0), r)).astype(np.int8).view(np.uint8) + np.uint8(1)
    return d[:, 0], codes


def _encode_tq1_0(w: Float32) -> Blocks:
    blocks = np.empty(len(w), TQ1_0_STRUCT)
    blocks["d"], codes = _ternary(w)
    packed, start = [], 0
    for digits, size in _RUNS:
        run = codes[:, start : start + digits * size].reshape(-1, digits, size)
        number = sum(run[:, i] * _PLACES[i] for i in range(digits))  # (blocks, bytes)
        packed.append(_BYTE[number])
        start += digits * size
    blocks["qs"] = np.concatenate(packed[:2], axis=1)
    blocks["qh"] = packed[2]
    return blocks


def _decode_tq1_0(blocks: Blocks) -> Float32:
    w = np.empty((len(blocks), 256), np.float32)
    stored = (blocks["qs"][:, :32], blocks["qs"][:, 32:], blocks["qh"])
    start = 0
    for (digits, size), packed in zip(_RUNS, stored, strict=True):
        run = w[:, start : start + digits * size].reshape(-1, digits, size)
        for i in range(digits):
            run[:, i] = _DIGITS[i][packed]
        start += digits * size
    w *= blocks["d"].astype(np.float32)[:, None]
    return w


def _encode_tq2_0(w: Float32) -> Blocks:
    blocks = np.empty(len(w), TQ2_0_STRUCT)
    blocks["d"], codes = _ternary(w)
    runs = codes.reshape(-1, 2, 4, 32)  # weight 32 i + j of each half is in byte j, bits 2 i and 2 i + 1
    packed = runs[:, :, 0] | runs[:, :, 1] << 2 | runs[:, :, 2] << 4 | runs[:, :, 3] << 6
    blocks["qs"] = packed.reshape(-1, 64)
    return blocks


def _decode_tq2_0(blocks: Blocks) -> Float32:
    packed = blocks["qs"].reshape(-1, 2, 1, 32)
    codes = packed >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3  # (blocks, 2, 4, 32)
    w = codes.reshape(-1, 256).astype(np.float32)
    w -= np.float32(1)
    w *= blocks["d"].astype(np.float32)[:, None]
    return w


TQ1_0 = GgmlType(
    name="tq1_0",
    type_id=34,
    block_size=256,
    struct=TQ1_0_STRUCT,
    decode=_decode_tq1_0,
    encode=_encode_tq1_0,
)
TQ2_0 = GgmlType(
    name="tq2_0",
    type_id=35,
    block_size=256,
    struct=TQ2_0_STRUCT,
    decode=_decode_tq2_0,
    encode=_encode_tq2_0,
)

register(GgmlFormat(TQ1_0), GgmlFormat(TQ2_0))
