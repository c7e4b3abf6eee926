"""ggml's q4_k and q5_k: sub-blocks of 32 weights, each with a 6-bit scale and a 6-bit minimum (spec/ggml_k.md)."""

from dataclasses import dataclass

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
from refquant.formats.ggml_search import as_columns, sum_positions
from refquant.formats.ggml_search_minimum import WEIGHTED_TRIALS, Trials, minimum_search, scale_search
from refquant.formats.registry import register

_SIZE = 32
_TOP_SCALE = 63


def pack_scales(scales: UInt8, minima: UInt8) -> UInt8:
    """Eight 6-bit scales s and eight 6-bit minima m in twelve bytes, for j = 0 … 3.

    ```
    byte j       bits 7 6: s[j + 4] >> 4    bits 5 … 0: s[j]
    byte j + 4   bits 7 6: m[j + 4] >> 4    bits 5 … 0: m[j]
    byte j + 8   bits 7 … 4: m[j + 4] & 15  bits 3 … 0: s[j + 4] & 15
    ```

    Args:
        scales, minima: uint8 (blocks, 8). One beyond 63 runs into its neighbour's bits, as in C.

    Returns:
        uint8 (blocks, 12).
    """
    four, six = np.uint8(4), np.uint8(6)
    packed = np.empty((len(scales), 12), np.uint8)
    packed[:, :4] = scales[:, :4] | (scales[:, 4:] >> four << six)
    packed[:, 4:8] = minima[:, :4] | (minima[:, 4:] >> four << six)
    packed[:, 8:] = (scales[:, 4:] & 15) | (minima[:, 4:] << four)
    return packed


def unpack_scales(packed: UInt8) -> tuple[UInt8, UInt8]:
    """The scales and the minima that twelve bytes hold: (blocks, 12) to twice (blocks, 8)."""
    four, six = np.uint8(4), np.uint8(6)
    scale, minimum, both = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([scale & 63, (both & 15) | (scale >> six << four)], axis=1)
    minima = np.concatenate([minimum & 63, (both >> four) | (minimum >> six << four)], axis=1)
    return scales, minima


@dataclass(frozen=True)
class _Width:
    """What q4_k and q5_k differ in.

    Attributes:
        struct: the block.
        top: codes are 0 … top.
        trials: the steps that the search without an importance matrix tries.
        cap: the largest 6-bit number that the weighted encoder stores; 255 for q4_k, where ggml leaves out the limit.
    """

    struct: np.dtype[np.void]
    top: int
    trials: Trials
    cap: int

    def encode(self, w: Float32) -> Blocks:
        """(blocks, 256) float32 to (blocks,) structs."""
        x = as_columns(w, _SIZE)  # (32, sub-blocks)
        weights = np.sqrt(sum_positions(np.square(x)) / np.float32(_SIZE)) + np.abs(x)  # E1
        scale, minimum, found = minimum_search(x, weights, self.top, self.trials)  # E2
        scales, minima = scale.reshape(-1, 8), -minimum.reshape(-1, 8)
        largest, deepest = largest_of(scales), largest_of(minima)  # E3
        blocks = np.zeros(len(w), self.struct)
        blocks["scales"] = pack_scales(  # E4
            np.minimum(in_steps(scales, largest, _TOP_SCALE), _TOP_SCALE),
            np.minimum(in_steps(minima, deepest, _TOP_SCALE), _TOP_SCALE),
        )
        blocks["d"] = half(largest / np.float32(_TOP_SCALE))
        blocks["dmin"] = half(deepest / np.float32(_TOP_SCALE))
        self._store_codes(blocks, x, found)
        return blocks

    def encode_weighted(self, w: Float32, importance: Float32) -> Blocks:
        """(rows, blocks a row, 256) float32 and (blocks a row, 256) to (rows, blocks a row) structs."""
        x = as_columns(w, _SIZE)  # (32, sub-blocks)
        weights, sums = importance_weights(w, importance, _SIZE, factor=2)  # W1
        scale, minimum, found = minimum_search(x, weights, self.top, WEIGHTED_TRIALS)  # W2
        d, scales = scale_search(as_columns(scale, 8), sums, _TOP_SCALE)  # (blocks,), (8, blocks)
        dmin, minima = scale_search(as_columns(-minimum, 8), sums, _TOP_SCALE)
        blocks = np.zeros(len(d), self.struct)
        blocks["scales"] = pack_scales(np.minimum(scales.T, self.cap), np.minimum(minima.T, self.cap))
        blocks["d"], blocks["dmin"] = half(d), half(dmin)
        self._store_codes(blocks, x, found)
        return blocks.reshape(w.shape[:2])

    def decode(self, blocks: Blocks) -> Float32:
        """(blocks,) structs to (blocks, 256) float32."""
        codes = from_planes(blocks["qs"].reshape(-1, 4, _SIZE), 2, 4).reshape(-1, 8, _SIZE)
        if self.top > 15:
            codes |= from_planes(blocks["qh"], 8, 1) << np.uint8(4)
        scale, minimum = _stored_scales(blocks)  # (blocks, 8) each
        decoded = scale[:, :, None] * codes.astype(np.float32) - minimum[:, :, None]
        return decoded.reshape(-1, SUPER_BLOCK)

    def as_type(self, name: str, type_id: int) -> GgmlType:
        """The type of this width."""
        return GgmlType(
            name=name,
            type_id=type_id,
            block_size=SUPER_BLOCK,
            struct=self.struct,
            decode=self.decode,
            encode=self.encode,
            encode_weighted=self.encode_weighted,
            largest=LARGEST_HALF * _TOP_SCALE * self.top,
        )

    def _store_codes(self, blocks: Blocks, x: Float32, found: UInt8) -> None:
        codes = requantized(x, found, *_stored_scales(blocks), 0, self.top)  # E5; (sub-blocks, 32)
        blocks["qs"] = in_planes((codes & np.uint8(15)).reshape(-1, 4, 2, _SIZE), 2, 4).reshape(-1, 128)
        if self.top > 15:
            blocks["qh"] = in_planes((codes >> np.uint8(4)).reshape(-1, 8, _SIZE), 8, 1)


def _stored_scales(blocks: Blocks) -> tuple[Float32, Float32]:
    scales, minima = unpack_scales(blocks["scales"])
    return sub_block_scales(blocks["d"], scales), sub_block_scales(blocks["dmin"], minima)


_Q4_K = _Width(
    struct=np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)]),
    top=15,
    trials=Trials(-1.0, 0.1, 20),
    cap=255,
)
_Q5_K = _Width(
    struct=np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)]),
    top=31,
    trials=Trials(-0.5, 0.1, 15),
    cap=63,
)

Q4_K = _Q4_K.as_type("q4_k", 12)
Q5_K = _Q5_K.as_type("q5_k", 13)

register(GgmlFormat(Q4_K), GgmlFormat(Q5_K))
