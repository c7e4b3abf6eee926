"""ggml's q8_k: 256 signed bytes, a float32 scale, and the sums of each 16 bytes (spec/ggml_k.md).

ggml keeps the activations in it that it multiplies with K types; files do not hold it.
"""

import numpy as np

from refquant.arrays import Float32
from refquant.formats.ggml import Blocks, GgmlFormat, GgmlType
from refquant.formats.ggml_k import SUPER_BLOCK
from refquant.formats.ggml_search import as_columns, signed_peak
from refquant.formats.registry import register
from refquant.formats.rounding import nearest_int

_TOP = 127

_STRUCT = np.dtype([("d", "<f4"), ("qs", "i1", 256), ("bsums", "<i2", 16)])


def _encode(w: Float32) -> Blocks:
    peak = signed_peak(as_columns(w, SUPER_BLOCK))
    inverse = np.float32(-_TOP) / peak
    codes = np.minimum(nearest_int(inverse[:, None] * w), _TOP).astype(np.int8)
    codes[peak == 0] = 0
    blocks = np.zeros(len(w), _STRUCT)
    blocks["d"] = np.where(peak == 0, np.float32(0), np.float32(1) / inverse)
    blocks["qs"] = codes
    blocks["bsums"] = codes.reshape(-1, 16, 16).sum(axis=2, dtype=np.int16)
    return blocks


def _decode(blocks: Blocks) -> Float32:
    decoded: Float32 = blocks["d"][:, None] * blocks["qs"].astype(np.float32)
    return decoded


Q8_K = GgmlType(
    name="q8_k",
    type_id=15,
    block_size=SUPER_BLOCK,
    struct=_STRUCT,
    decode=_decode,
    encode=_encode,
)

register(GgmlFormat(Q8_K))
