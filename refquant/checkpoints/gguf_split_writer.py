"""Writing a model as several GGUF files, cut and named as llama-gguf-split does (spec/gguf.md, section 5)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from refquant.checkpoints.atomic import replacing
from refquant.checkpoints.gguf_encoding import alignment_of
from refquant.checkpoints.gguf_metadata import ALIGNMENT_KEY, DEFAULT_ALIGNMENT
from refquant.checkpoints.gguf_split import SPLIT_COUNT, SPLIT_KEYS, SPLIT_NO, SPLIT_TENSORS, part_path
from refquant.checkpoints.gguf_values import Value, i32, u16
from refquant.checkpoints.gguf_writer import Progress, TensorSource, encode_header, write_data
from refquant.errors import RefquantError

MAX_PARTS: Final = (1 << 16) - 1


def split_by_tensors(tensors: Iterable[TensorSource], most: int) -> list[list[TensorSource]]:
    """Parts of at most that many tensors, in order."""
    if most < 1:
        raise RefquantError(f"{most} tensors a file given; at least 1 is needed")
    tensors = list(tensors)
    return [tensors[start : start + most] for start in range(0, len(tensors), most)]


def split_by_bytes(tensors: Iterable[TensorSource], most: int) -> list[list[TensorSource]]:
    """Parts of at most that many bytes of data, padding counted, in order; a larger tensor gets a part of its own."""
    if most < 1:
        raise RefquantError(f"{most} bytes a file given; at least 1 is needed")
    parts: list[list[TensorSource]] = []
    size = 0
    for tensor in tensors:
        padded = -(-tensor.nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
        if parts and size + padded <= most:
            parts[-1].append(tensor)
            size += padded
        else:
            parts.append([tensor])
            size = padded
    return parts


def write_split(
    prefix: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    parts: Sequence[Sequence[TensorSource]],
    progress: Progress | None = None,
) -> list[Path]:
    """Write `prefix-00001-of-0000N.gguf` and so on; all metadata is in the first, which may hold no tensors.

    No part appears before all of them are written.

    Args:
        prefix: the path without `-00001-of-0000N.gguf`.
        metadata: values with their types; split.* keys in it are replaced.
        parts: the tensors of each file.
        progress: as for `write_gguf`.

    Returns:
        The paths.

    Raises:
        RefquantError: no parts or more than 65,535; a tensor in two of them; otherwise as `write_gguf`.

    Source: spec/gguf.md, section 5; llama.cpp's tools/gguf-split.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise RefquantError(f"{len(parts)} parts given; a split model has 1 to {MAX_PARTS}")
    encode_header({}, [tensor for part in parts for tensor in part])  # all names at once: none may be in two parts
    headers = [encode_header(_part_metadata(metadata, parts, number), part) for number, part in enumerate(parts)]
    paths = [part_path(Path(prefix), number, len(parts)) for number in range(1, len(parts) + 1)]
    with ExitStack() as files:  # the first part is renamed last: once it is there, all are
        for path, header, part in zip(paths, headers, parts, strict=True):
            file = files.enter_context(replacing(path))
            file.write(header)
            write_data(file, part, alignment_of(metadata), progress)
    return paths


def _part_metadata(
    metadata: Mapping[str, Value], parts: Sequence[Sequence[TensorSource]], number: int
) -> dict[str, Value]:
    kept = {
        key: value for key, value in metadata.items() if key not in SPLIT_KEYS and (not number or key == ALIGNMENT_KEY)
    }
    tensors = sum(len(part) for part in parts)
    return kept | {SPLIT_NO: u16(number), SPLIT_TENSORS: i32(tensors), SPLIT_COUNT: u16(len(parts))}
