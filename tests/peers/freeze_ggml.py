"""Writes tests/formats/ggml_vectors/: `python -m tests.peers.freeze_ggml` after a type is added.

The rows: a normal sample with a scale of its own in every sub-block, ties, one-sided and equal blocks, zeros of both
signs and zero sub-blocks, an outlier, tiny and huge numbers.
"""

import base64
import json

import numpy as np

from refquant.arrays import Float32
from refquant.formats.ggml import GgmlFormat
from tests.formats.ggml_vectors import path
from tests.peers import test_ggml
from tests.peers.llama_cpp import PACKAGE

SOURCE = f"ggml 0.25.3 of {PACKAGE}, C reference without contraction"


def matrix(n: int) -> Float32:
    """Twelve rows of n weights, a multiple of 256."""
    rng = np.random.default_rng(2026)
    x = rng.standard_normal((12, n // 16, 16))
    x *= np.exp2(rng.uniform(-4, 0, (12, n // 16)))[..., None]
    x[1] = np.rint(x[1] * 16) / 2  # ties of many steps
    x[2] = np.abs(x[2])
    x[3] = -np.abs(x[3]) - 0.25
    x[4] = x[4][:, :1]  # equal within a sub-block
    x[5, ::3] = 0
    x[5, 1::3] *= -0.0
    x[6] = 0
    x[6, 0, 3] = 0.75
    x[7] *= rng.random(x[7].shape) < 0.1
    x[7, 0, 5] = 90
    x[8] *= 2.0**-22
    x[9] *= 300
    x[10] = np.sign(x[10]) * (1 + rng.integers(-3, 4, x[10].shape) * 2.0**-23)
    x[11] *= 2.0**-118  # far below the smallest float16
    return x.reshape(12, n).astype(np.float32)


def importance(n: int) -> Float32:
    """A few orders of magnitude, some columns zero."""
    rng = np.random.default_rng(7)
    columns = np.exp(rng.normal(0, 1.5, n))
    columns[rng.random(n) < 0.05] = 0
    return columns.astype(np.float32)


def freeze(fmt: GgmlFormat) -> None:
    n = 256 if fmt.block_size > 1 else 64
    w, columns = matrix(256)[:, :n].copy(), importance(n)
    write(f"inputs-{n}", {"rows": len(w), "weights": packed(w), "importance": packed(columns)})
    looks = fmt.type.encode_weighted is not None
    plain = None if fmt.needs_imatrix else packed(test_ggml.theirs(fmt, w))
    weighted = packed(test_ggml.theirs(fmt, w, columns)) if looks else None
    write(fmt.name, {"source": SOURCE, "inputs": f"inputs-{n}", "plain": plain, "weighted": weighted})


def packed(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def write(name: str, document: dict[str, object]) -> None:
    path(name).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for fmt in test_ggml.FORMATS:
        freeze(fmt)
