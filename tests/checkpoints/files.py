"""Safetensors files made by hand, valid and broken, so that the reader's tests do not lean on a writer."""

import json
import struct
from pathlib import Path

import numpy as np

from refquant.checkpoints import Checkpoint
from refquant.checkpoints import open as open_checkpoint

WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "F8_E8M0": 1,
}  # fmt: skip


def safetensors_bytes(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of a header (text, bytes, or what JSON makes of it), its length or a false one, and data."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: str, shape: list[int], begin: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + int(np.prod(shape)) * WIDTHS[dtype]]}


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> Path:
    """A valid file of tensors given as dtype, shape and bytes."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = entry(dtype, shape, len(data))
        data += raw
    path.write_bytes(safetensors_bytes(header, data))
    return path


def floats(*values: float) -> tuple[str, list[int], bytes]:
    return "F32", [len(values)], np.array(values, "<f4").tobytes()


def opened(folder: Path, content: bytes) -> Checkpoint:
    """The checkpoint in a fresh file of that content."""
    path = folder / "x.safetensors"
    path.unlink(missing_ok=True)  # a new file: the old one may still be mapped
    path.write_bytes(content)
    return open_checkpoint(path)
