"""The 16-bit floats f16 and bf16 as ggml's types: a block is one number (spec/ggml_float.md)."""

from collections.abc import Mapping

import numpy as np

from refquant.arrays import Array, Float32, Shape, UInt8
from refquant.formats.base import Parts
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.registry import register

F16_STRUCT = np.dtype([("value", "<f2")])
BF16_STRUCT = np.dtype([("bits", "<u2")])


def _encode_f16(w: Float32) -> Blocks:
    blocks: Blocks = w[:, 0].astype("<f2").view(F16_STRUCT)
    return blocks


def _decode_f16(blocks: Blocks) -> Float32:
    w: Float32 = blocks["value"].astype(np.float32)[:, None]
    return w


def _encode_bf16(w: Float32) -> Blocks:
    bits = w[:, 0].view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    blocks = np.empty(len(w), BF16_STRUCT)
    blocks["bits"] = bits + (np.uint32(0x7FFF) + odd) >> np.uint32(16)  # to the nearest, ties to even
    return blocks


def _decode_bf16(blocks: Blocks) -> Float32:
    bits = blocks["bits"].astype(np.uint32)[:, None]
    bits <<= np.uint32(16)
    return bits.view(np.float32)


F16 = GgmlType(
    name="f16",
    type_id=1,
    block_size=1,
    struct=F16_STRUCT,
    decode=_decode_f16,
    encode=_encode_f16,
    largest=float(np.nextafter(np.float32(65520), np.float32(0))),  # what rounds to 65504
)
BF16 = GgmlType(
    name="bf16",
    type_id=30,
    block_size=1,
    struct=BF16_STRUCT,
    decode=_decode_bf16,
    encode=_encode_bf16,
    largest=float(np.uint32(0x7F7F7FFF).view(np.float32)),  # what rounds to 0x7f7f
)


class OneCast(GgmlFormat):
    """A type that one cast of NumPy makes and reads: cut into slices, it would only be copied once more."""

    def encode(self, w: Float32) -> Parts:
        self._check_magnitudes(w)  # all that can go wrong: what is not beyond the largest number becomes a finite one
        return {"blocks": self.encode_bytes(w)}

    def encode_bytes(self, w: Float32, importance: Float32 | None = None) -> UInt8:
        assert self.type.encode is not None
        with np.errstate(over="ignore"):
            blocks = self.type.encode(w.reshape(-1, 1))
        return blocks.view(np.uint8).reshape(self.layout(w.shape)["blocks"].shape)

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        return self.type.decode(np.ascontiguousarray(parts["blocks"]).reshape(-1).view(self.type.struct)).reshape(shape)


register(OneCast(F16), GgmlFormat(BF16))
