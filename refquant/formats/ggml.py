"""What ggml's types share: rows cut into self-contained blocks, each a packed struct (spec/ggml.md).

A type is a `GgmlType` literal: its facts, and block maths over all blocks at once. `GgmlFormat` makes a format of
it: rows and shapes, the importance matrix, slices that stay in the cache, and scales that overflow.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from refquant.arrays import Array, Float32, Shape, UInt8
from refquant.errors import PartsError, RefquantError, ScaleOverflowError
from refquant.formats.base import Format, Parts, QuantizedTensor, Stored

Blocks: TypeAlias = Array  # (blocks,) of a type's struct

_WEIGHTS_AT_ONCE = 1 << 17
_WEIGHTS_OF_A_PRODUCT = 1 << 24  # more than most layers have; heads of large vocabularies are beyond


class BlockError(Exception):
    """Raised by an encoder for a block on which ggml aborts.

    Attributes:
        block: its number among the blocks that the encoder was given.
        reason: what is wrong with it, "its …".
    """

    def __init__(self, block: int, reason: str) -> None:
        super().__init__(block, reason)
        self.block, self.reason = block, reason


@dataclass(frozen=True)
class GgmlType:
    """One of ggml's types.

    Attributes:
        name: ggml's name in lower case.
        type_id: its number in a GGUF file (`enum ggml_type`).
        block_size: weights in a block; a row holds whole blocks.
        struct: the block's bytes as a packed NumPy struct, fields in the order of ggml's.
        decode: (blocks,) structs to (blocks, block_size) float32.
        encode: (blocks, block_size) finite float32 to (blocks,) structs; None where ggml demands an importance matrix.
        encode_weighted: (rows, blocks a row, block_size) float32 and its importance, (blocks a row, block_size), to
            (rows, blocks a row) structs; None where ggml takes an importance matrix and does not look at it.
        scale: (blocks,) structs to the float scale of each, where it is not a field of the struct.
        largest: the largest |w| that is not refused, where a larger one overflows without a scale that tells.
    """

    name: str
    type_id: int
    block_size: int
    struct: np.dtype[np.void]
    decode: Callable[[Blocks], Float32] = field(repr=False)
    encode: Callable[[Float32], Blocks] | None = field(repr=False)
    encode_weighted: Callable[[Float32, Float32], Blocks] | None = field(default=None, repr=False)
    scale: Callable[[Blocks], Array] | None = field(default=None, repr=False)
    largest: float = math.inf


@dataclass(frozen=True)
class GgmlFormat(Format):
    """A type of ggml as a format: one part, `blocks`, the bytes of every row's blocks in order.

    Attributes:
        type: the type's facts and block maths.
    """

    type: GgmlType

    @property
    def name(self) -> str:
        return self.type.name

    @property
    def block_size(self) -> int:
        return self.type.block_size

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type.struct.itemsize / self.type.block_size

    @property
    def parts(self) -> tuple[str, ...]:
        return ("blocks",)

    @property
    def needs_imatrix(self) -> bool:
        """Whether the type cannot be encoded without an importance matrix."""
        return self.type.encode is None

    def layout(self, shape: Shape) -> dict[str, Stored]:
        """uint8 (..., n // block_size · block bytes) for a tensor of shape (..., n).

        Raises:
            RefquantError: the block size does not divide n, or there is no axis.
        """
        size = self.type.block_size
        if not shape or shape[-1] % size:
            raise RefquantError(f"{self.name}: shape {shape} given; rows must be a multiple of {size} weights long")
        row = shape[-1] // size * self.type.struct.itemsize
        return {"blocks": Stored(np.dtype(np.uint8), (*shape[:-1], row))}

    def encode(self, w: Float32) -> Parts:
        self._check_magnitudes(w)
        return self._checked(self.encode_bytes(w), w.shape)

    def encode_weighted(self, w: Float32, importance: Float32) -> Parts:
        self._check_magnitudes(w)
        return self._checked(self.encode_bytes(w, importance), w.shape)

    def encode_bytes(self, w: Float32, importance: Float32 | None = None) -> UInt8:
        """The bytes that ggml writes, also where a scale overflows what stores it.

        Args:
            w: finite, C-contiguous float32 of shape (..., n).
            importance: float32 (n,), or (..., n) with an own row for every matrix of w; none, or all ≥ 0 and finite.

        Returns:
            uint8 of the layout's shape.

        Raises:
            RefquantError: the block size does not divide n, the type demands an importance matrix, or ggml aborts on
                a block.
        """
        kind, stored = self.type, self.layout(w.shape)["blocks"]
        if kind.encode is None and importance is None:
            raise RefquantError(
                f"{self.name}: no importance matrix given; ggml defines no encoding of this type without one: "
                "pass imatrix=, one weight a column"
            )
        blocks = np.empty(w.size // kind.block_size, kind.struct)
        with np.errstate(all="ignore"):  # C's float arithmetic; an overflow of a scale is found by its block
            if importance is None or kind.encode_weighted is None:
                assert kind.encode is not None
                flat = w.reshape(-1, kind.block_size)
                raw = blocks.view(np.uint8).reshape(len(blocks), kind.struct.itemsize)  # copies faster than structs
                for some in _slices(len(flat), kind.block_size):
                    try:
                        raw[some] = kind.encode(flat[some]).view(np.uint8).reshape(-1, raw.shape[1])
                    except BlockError as error:
                        raise self._refused(error, some.start, w.shape) from None
            else:
                self._encode_weighted(kind.encode_weighted, w, importance, blocks)
        return blocks.view(np.uint8).reshape(stored.shape)

    def _encode_weighted(
        self, encode: Callable[[Float32, Float32], Blocks], w: Float32, importance: Float32, blocks: Blocks
    ) -> None:
        if w.size == 0:
            return
        n, size = w.shape[-1], self.type.block_size
        rows = w.shape[-2] if w.ndim > 1 else 1
        matrices = w.reshape(-1, rows, n // size, size)
        out = blocks.reshape(-1, rows, n // size)
        columns = np.broadcast_to(importance, (*w.shape[:-2], n)).reshape(-1, n // size, size)
        for number, (matrix, weights, into) in enumerate(zip(matrices, columns, out, strict=True)):
            for some in _slices(rows, n):
                try:
                    into[some] = encode(matrix[some], np.ascontiguousarray(weights))
                except BlockError as error:
                    raise self._refused(error, (number * rows + some.start) * (n // size), w.shape) from None

    def _refused(self, error: BlockError, before: int, shape: Shape) -> RefquantError:
        """The error for a block that comes so many blocks after the tensor's first."""
        return RefquantError(
            f"{self.name}: the block that starts at index {self._start(before + error.block, shape)}: {error.reason}; "
            "scale the tensor or its importance matrix"
        )

    def _start(self, block: int, shape: Shape) -> Shape:
        return tuple(int(i) for i in np.unravel_index(block * self.type.block_size, shape))

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        kind = self.type
        blocks = np.ascontiguousarray(parts["blocks"]).reshape(-1).view(kind.struct)
        decoded = np.empty((len(blocks), kind.block_size), np.float32)
        for some in _slices(len(blocks), kind.block_size):
            decoded[some] = kind.decode(blocks[some])
        return decoded.reshape(shape)

    def _check_magnitudes(self, w: Float32) -> None:
        limit = self.type.largest
        if limit == math.inf or max(w.max(initial=0), -w.min(initial=0)) <= limit:
            return
        beyond = np.abs(w) > limit
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(beyond)), w.shape))
        raise ScaleOverflowError(
            f"{self.name}: {w[index]} at index {index}, and {np.count_nonzero(beyond) - 1} others of {w.size} beyond "
            f"what the type stores (at most {limit:.9g}): scale the tensor down"
        )

    def _checked(self, stored: UInt8, shape: Shape) -> Parts:
        blocks = stored.reshape(-1).view(self.type.struct)
        named = {name: blocks[name] for name in blocks.dtype.names or ()}
        if self.type.scale is not None:
            named["scale"] = self.type.scale(blocks)
        for name, scales in named.items():
            if scales.dtype.kind == "f" and not np.isfinite(scales).all():
                bad = ~np.isfinite(scales).reshape(len(blocks), -1).all(axis=1)
                start = self._start(int(np.argmax(bad)), shape)
                raise ScaleOverflowError(
                    f"{self.name}: the block that starts at index {start} needs a scale {name!r} beyond "
                    f"{scales.dtype.name}'s range (at most {np.finfo(scales.dtype).max:.9g}), and so do "
                    f"{np.count_nonzero(bad) - 1} others of {len(blocks)}: scale the tensor down"
                )
        return {"blocks": stored}

    def linear(self, x: Float32, q: QuantizedTensor) -> Float32:
        """The product over runs of rows, so that a matrix with many of them is never widened as a whole."""
        rows, n = q.shape
        if rows * n <= _WEIGHTS_OF_A_PRODUCT:
            return super().linear(x, q)
        out = np.empty((*x.shape[:-1], rows), np.float32)
        step = max(1, _WEIGHTS_OF_A_PRODUCT // n)
        for start in range(0, rows, step):
            blocks = q.parts["blocks"][start : start + step]
            some = QuantizedTensor(self, (len(blocks), n), {"blocks": blocks})
            out[..., start : start + step] = x @ some.dequantize().T
        return out

    def __repr__(self) -> str:
        return f"GgmlFormat({self.name!r})"


def structs(parts: Mapping[str, Array], fmt: GgmlFormat) -> Blocks:
    """The stored bytes as structs of shape (..., blocks a row), to look at fields by name.

    Raises:
        PartsError: the last axis is not whole blocks.
    """
    stored, size = parts["blocks"], fmt.type.struct.itemsize
    if stored.shape[-1] % size:
        raise PartsError(f"{fmt.name}: rows of {stored.shape[-1]} bytes given; a block takes {size}")
    return np.ascontiguousarray(stored).view(fmt.type.struct)


def _slices(count: int, weights_each: int) -> Iterator[slice]:
    """Runs of rows or blocks, few enough weights that the intermediate arrays of one run stay in the cache."""
    step = max(1, _WEIGHTS_AT_ONCE // max(weights_each, 1))
    for start in range(0, count, step):
        yield slice(start, start + step)
