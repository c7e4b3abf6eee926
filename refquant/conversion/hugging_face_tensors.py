"""A Hugging Face folder's tensors as llama.cpp's converter stores them (spec/gguf_models.md, section 5)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from refquant.arrays import Array, Float32, Shape
from refquant.checkpoints.checkpoint import Checkpoint, CheckpointTensor
from refquant.floats import BF16
from refquant.models.gguf_architectures import ROPE_FREQS, ROPE_LONG, ROPE_SHORT
from refquant.models.rope import Llama3Rope, LongRope, Rope
from refquant.models.weights import Names

FILE_TYPES: Final = {"F32": 0, "F16": 1, "BF16": 32}  # llama.cpp's numbers: all of it, or most
_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2}

Change = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class ConvertedTensor:
    """A tensor of the file to be, made when it is asked for.

    Attributes:
        name: in GGUF's terms.
        dtype: "F32", "F16" or "BF16".
        shape: in C order.
        path: the file that it is made from.
    """

    name: str
    dtype: str
    shape: Shape
    path: Path
    _make: Callable[[], Array] = field(repr=False)  # float32, or float16 where the folder has that

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file to be."""
        return self.size * _BYTES[self.dtype]

    def numpy(self) -> Array:
        """The elements: native float32 or float16, rounded once with ties to even; BF16 as uint16 codes."""
        array = self._make()
        if self.dtype == "BF16":
            return BF16.encode(array)
        with np.errstate(over="ignore"):  # past float16's range lies its infinity, as in NumPy and in the converter
            return np.ascontiguousarray(array, np.float32 if self.dtype == "F32" else np.float16)

    def dequantize(self) -> Float32:
        """What the elements mean."""
        array = self.numpy()
        return BF16.decode(array) if self.dtype == "BF16" else array.astype(np.float32, copy=False)


def guess_type(stored: Checkpoint) -> str:
    """The converter's `auto`: BF16 or F16, whichever the first such matrix has; F16 where there is none."""
    matrices = (stored[name] for name in in_converter_s_order(stored) if len(stored[name].shape) > 1)
    return next((tensor.dtype for tensor in matrices if tensor.dtype in ("BF16", "F16")), "F16")


def in_converter_s_order(stored: Checkpoint) -> list[str]:
    """File by file, and in each by name."""
    return sorted(stored, key=lambda name: (stored[name].path.name, name))


def converted(
    stored: Checkpoint, names: Names, target: Names, file_type: str, vocab_size: int | None
) -> Iterator[ConvertedTensor]:
    """Every tensor that the model has, in the converter's order.

    Args:
        stored: the folder's tensors.
        names: what they are called there.
        target: what GGUF calls them.
        file_type: "F32", "F16" or "BF16": how matrices are stored.
        vocab_size: rows that the token embedding is cut to; None to leave it.
    """
    renamed, changes = _renamed(names, target), _changes(names, target, vocab_size)
    gemma2 = target.architecture.name == "Gemma2ForCausalLM"  # whose head is the embedding, whatever is stored
    for name in in_converter_s_order(stored):
        if name not in renamed or (gemma2 and name == f"{names.architecture.head}.weight"):
            continue  # a buffer; `bind` has refused what is neither buffer nor weight
        tensor, change = stored[name], changes.get(name, lambda array: array)
        shape = tensor.shape[::-1] if change is _transposed else tensor.shape
        if vocab_size is not None and name == names.embedding:
            shape = (min(vocab_size, shape[0]), *shape[1:])
        dtype = _stored_type(renamed[name], shape, file_type)
        yield ConvertedTensor(renamed[name], dtype, shape, tensor.path, _maker(tensor, change))


def rope_tensors(rope: Rope | None, name: str, path: Path) -> Iterator[ConvertedTensor]:
    """The divisors of frequencies that a scaling becomes, before all other tensors.

    Args:
        rope: the scaling of full layers.
        name: what GGUF calls the architecture; the converter makes Llama's for it alone, and Phi-3's.
        path: what to give as their file.
    """
    divisors: dict[str, Float32] = {}
    if name == "llama" and isinstance(rope, Llama3Rope):
        divisors = {ROPE_FREQS: llama3_divisors(rope)}
    elif name == "phi3" and isinstance(rope, LongRope):
        factors = {ROPE_LONG: rope.long_factor, ROPE_SHORT: rope.short_factor}
        divisors = {key: np.array(values, np.float32) for key, values in factors.items()}
    for key, values in divisors.items():
        yield ConvertedTensor(key, "F32", values.shape, path, lambda values=values: values)  # type: ignore[misc]


def llama3_divisors(rope: Llama3Rope) -> Float32:
    """One divisor a pair, (dim / 2,), with the converter's roundings.

    torch divides a number by a float32 tensor as the tensor's reciprocal times the number, which rounds twice. Its
    power is not always the nearest float32, so that now and then a divisor differs in its last bits.
    """
    one, low = np.float32(1), np.float32(rope.low_freq_factor)
    span = np.float32(rope.high_freq_factor - rope.low_freq_factor)
    length = rope.original_max_position_embeddings
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    frequencies = one / np.power(np.float32(rope.rope_theta), exponents)
    wavelengths = (one / frequencies) * np.float32(2 * math.pi)
    smooth = ((one / wavelengths) * np.float32(length) - low) / span
    factor = np.float32(rope.factor)
    blended = one / ((one - smooth) / factor + smooth)
    kept, divided = wavelengths < length / rope.high_freq_factor, wavelengths > length / rope.low_freq_factor
    return np.where(kept, one, np.where(divided, factor, blended))


def _stored_type(name: str, shape: Shape, file_type: str) -> str:
    """Vectors, norms, biases and learned positions stay float32."""
    matrix = len(shape) > 1 and name.endswith(".weight") and not name.endswith("_norm.weight")
    return file_type if matrix and name != "position_embd.weight" else "F32"


def _renamed(names: Names, target: Names) -> dict[str, str]:
    """GGUF's name of each of the folder's."""
    stems = {names.final_norm: target.final_norm, names.architecture.head: target.architecture.head}
    for layer in range(names.config.num_layers):
        theirs, ours = target.block(layer), names.block(layer)
        stems |= {stem: theirs[role] for role, stem in ours.items()}
    renamed = {f"{old}.{kind}": f"{new}.{kind}" for old, new in stems.items() for kind in ("weight", "bias")}
    renamed[names.embedding] = target.embedding
    if names.positions is not None and target.positions is not None:
        renamed[names.positions] = target.positions
    return renamed


def _changes(names: Names, target: Names, vocab_size: int | None) -> dict[str, Change]:
    """What happens to the tensors that are not stored as they are."""
    architecture = names.architecture
    blocks = [names.block(layer) for layer in range(names.config.num_layers)]
    changes: dict[str, Change] = {}
    if architecture.stored_in_out:
        changes |= dict.fromkeys(names.linear, _transposed)
    if architecture.norm_offset:
        norms = [stem for block in blocks for role, stem in block.items() if role.endswith("norm")]
        changes |= {f"{stem}.weight": _plus(architecture.norm_offset) for stem in (*norms, names.final_norm)}
    if target.architecture.neighbouring_pairs:
        pairs = _neighbouring(names.config.head_dim)
        changes |= {f"{block[role]}.{kind}": pairs for block in blocks for role in "qk" for kind in ("weight", "bias")}
    if vocab_size is not None:
        changes[names.embedding] = lambda array: array[:vocab_size]
    return changes


def _transposed(array: Array) -> Array:
    return array.T


def _plus(offset: float) -> Change:
    return lambda array: array + array.dtype.type(offset)  # in float16 where the folder has that, as in the converter


def _neighbouring(head_dim: int) -> Change:
    """Heads' rows in halves to neighbouring pairs: `order_of_halves` undone."""

    def change(array: Array) -> Array:
        halves = array.reshape(-1, 2, head_dim // 2, *array.shape[1:])  # (heads, 2, pairs, …)
        return halves.swapaxes(1, 2).reshape(array.shape)

    return change


def _maker(tensor: CheckpointTensor, change: Change) -> Callable[[], Array]:
    return lambda: change(tensor.numpy() if tensor.dtype == "F16" else tensor.dequantize())
