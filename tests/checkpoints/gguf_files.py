"""GGUF files made by hand, field by field, so that the reader's tests do not lean on the writer."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from refquant.checkpoints.gguf import GgufCheckpoint
from refquant.checkpoints.gguf_split import open_gguf

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in CODES.items()}

GGML = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "Q4_K": 12, "Q6_K": 14, "I8": 24, "I32": 26, "F64": 28, "BF16": 30}


@dataclass(frozen=True)
class Writing:
    """How numbers are stored: the order, and the code of lengths and dimensions."""

    order: str = "<"
    length: str = "Q"

    def pack(self, codes: str, *values: object) -> bytes:
        return struct.pack(self.order + codes, *values)

    def string(self, text: str | bytes, length: int | None = None) -> bytes:
        raw = text.encode() if isinstance(text, str) else text
        return self.pack(self.length, len(raw) if length is None else length) + raw

    def scalar(self, kind: int, value: object) -> bytes:
        return self.string(value) if kind == STR else self.pack(CODES[kind], value)

    def pair(self, key: str | bytes, kind: int, value: object) -> bytes:
        return self.string(key) + self.pack("I", kind) + self.scalar(kind, value)

    def array(self, key: str, kind: int, values: Sequence[object], count: int | None = None) -> bytes:
        head = self.string(key) + self.pack("II" + self.length, ARR, kind, len(values) if count is None else count)
        return head + b"".join(self.scalar(kind, value) for value in values)

    def tensor(
        self,
        name: str | bytes,
        extents: Sequence[int],
        kind: int | str = "F32",
        offset: int = 0,
        count: int | None = None,
    ) -> bytes:
        dimensions = len(extents) if count is None else count
        number = GGML[kind] if isinstance(kind, str) else kind
        return (
            self.string(name)
            + self.pack("I" + self.length * len(extents), dimensions, *extents)
            + self.pack("IQ", number, offset)
        )


@dataclass(frozen=True)
class File:
    """A file of pairs and tensors already in bytes; counts may lie."""

    pairs: Sequence[bytes] = ()
    tensors: Sequence[bytes] = ()
    data: bytes = b""
    version: int = 3
    pair_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32
    magic: bytes = b"GGUF"
    w: Writing = field(default_factory=Writing)

    def bytes(self) -> bytes:
        counts = [
            len(given) if claimed is None else claimed
            for given, claimed in ((self.tensors, self.tensor_count), (self.pairs, self.pair_count))
        ]
        head = self.magic + self.w.pack("I" + 2 * self.w.length, self.version, *counts)
        head += b"".join([*self.pairs, *self.tensors])
        return head + bytes(-len(head) % self.alignment) + self.data if self.tensors else head + self.data


LITTLE = Writing()
V1 = Writing(length="I")
BIG = Writing(order=">")


def opened(folder: Path, content: bytes, name: str = "x.gguf") -> GgufCheckpoint:
    """The checkpoint in a fresh file of that content."""
    path = folder / name
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    path.write_bytes(content)
    return open_gguf(path)
