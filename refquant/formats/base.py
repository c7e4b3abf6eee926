"""What every format shares: its literal, its stored parts, and a quantized tensor.

A format supplies block maths alone: `layout`, `encode` and `decode` over clean float32 arrays. Dtypes, shapes,
finiteness, contiguity and backends are looked after here.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from refquant.arrays import Array, Float32, Shape, as_importance, as_weights
from refquant.errors import PartsError, RefquantError

Parts: TypeAlias = dict[str, Array]


class Stored(NamedTuple):
    """What one stored array is: its dtype (little-endian) and its shape."""

    dtype: np.dtype[np.generic]
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes that the array takes."""
        return self.dtype.itemsize * math.prod(self.shape)


class Option(NamedTuple):
    """How one field of a format is written inside a scheme.

    `text` is a word (`asym`), or a letter with `#` where a positive number stands (`g#`). A word sets the field to
    `value`. A number equal to `implied` is not printed.
    """

    field: str
    text: str
    value: object = None
    implied: object = None


@dataclass(frozen=True)
class Format(ABC):
    """What stored bytes mean: codes and scales to float32, and how weights become them.

    Two formats are equal when all their options are; `str(format)` is the scheme that parses to it.
    """

    options: ClassVar[tuple[Option, ...]] = ()

    @property
    @abstractmethod
    def name(self) -> str:
        """The format's name without options (`int4`)."""

    @property
    @abstractmethod
    def block_size(self) -> int | None:
        """Weights that share a scale; None where that is a whole row or tensor."""

    @property
    @abstractmethod
    def bits_per_weight(self) -> float:
        """Bits a weight in the limit of a large tensor; `QuantizedTensor.bits_per_weight` counts what is stored."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the stored arrays, in the order they are listed."""
        return tuple(self.layout((1,)))

    @abstractmethod
    def layout(self, shape: Shape) -> dict[str, Stored]:
        """Every stored array of a tensor of this shape."""

    @abstractmethod
    def encode(self, w: Float32) -> Parts:
        """Stored parts of finite, C-contiguous weights of at least one axis, as the NumPy reference makes them."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        """The float32 tensor that parts of the right dtypes and shapes mean, as the NumPy reference reads them."""

    def encode_weighted(self, w: Float32, importance: Float32) -> Parts:
        """As `encode`, with one importance ≥ 0 a column: (n,), or (..., n) for the matrices of w.

        Raises:
            RefquantError: the format takes no importance matrix.
        """
        raise RefquantError(f"{self}: an importance matrix given; only ggml's types take one")

    def linear(self, x: Float32, q: "QuantizedTensor") -> Float32:
        """A linear layer with quantized weights: x (..., tokens, n) and q (rows, n) to (..., tokens, rows).

        A format whose product looks at several rows of x together takes those of one sequence together, no more.
        """
        return x @ q.dequantize().T

    def __str__(self) -> str:
        words = [self.name]
        for option in self.options:
            value = getattr(self, option.field)
            if "#" in option.text:
                if value is not None and value > 0 and value != option.implied:
                    words.append(option.text.replace("#", format(value, "g" if isinstance(value, float) else "d")))
            elif value == option.value:
                words.append(option.text)
        return "-".join(words)


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A tensor in a quantized format.

    Attributes:
        format: what the parts mean.
        shape: the shape of the tensor that was quantized.
        parts: the stored arrays by name; `format.layout(shape)` gives their dtypes and shapes.

    Raises:
        PartsError: a part is missing, unknown, or of another dtype or shape than the format's layout says.
    """

    format: Format
    shape: Shape
    parts: Mapping[str, Array] = field(repr=False)

    def __post_init__(self) -> None:
        expected = self.format.layout(self.shape)
        if set(self.parts) != set(expected):
            raise PartsError(f"{self.format}: parts {sorted(self.parts)} given; the format stores {sorted(expected)}")
        for name, (dtype, shape) in expected.items():
            part = self.parts[name]
            if part.dtype != dtype or part.shape != shape:
                raise PartsError(
                    f"{self.format}: part {name!r} is {part.dtype} {part.shape}; "
                    f"a tensor of shape {self.shape} stores {dtype} {shape}"
                )

    @property
    def nbytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of everything stored over the number of weights; nan for an empty tensor."""
        size = math.prod(self.shape)
        return self.nbytes * 8 / size if size else math.nan

    def dequantize(self, backend: str = "auto") -> Float32:
        """The float32 tensor that the parts mean, of the shape that was quantized.

        Finite whenever every stored scale is finite and the products stay within float32's range.
        """
        check_backend(backend, self.format)
        with np.errstate(over="ignore", invalid="ignore"):  # scales as stored may be anything: infinity × 0 is NaN
            return self.format.decode(self.parts, self.shape)

    def linear(self, x: Float32) -> Float32:
        """`x @ self.T` as the format runs it: x of shape (..., tokens, n) to (..., tokens, rows)."""
        return self.format.linear(x, self)


def check_backend(backend: str, fmt: Format) -> None:
    """Raise unless `backend` can run the format. The NumPy reference always can, and is what "auto" takes now."""
    if backend not in ("auto", "numpy"):
        known = "a twin that this version does not have" if backend in ("numba", "cupy") else "not a backend"
        raise RefquantError(f"{fmt}: backend {backend!r} is {known}; use 'auto' or 'numpy'")


def encode(
    w: npt.ArrayLike,
    fmt: Format,
    name: str = "w",
    backend: str = "auto",
    imatrix: npt.ArrayLike | None = None,
) -> QuantizedTensor:
    """Quantize the array called `name` in messages: see `refquant.quantize`."""
    check_backend(backend, fmt)
    weights = as_weights(w, name)
    try:
        if imatrix is None:
            parts = fmt.encode(weights)
        else:
            parts = fmt.encode_weighted(weights, as_importance(imatrix, weights.shape))
    except RefquantError as error:
        raise type(error)(f"{name}: {error}") from None
    return QuantizedTensor(fmt, weights.shape, {part: parts[part] for part in fmt.parts})
