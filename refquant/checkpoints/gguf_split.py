"""Several GGUF files as one checkpoint (spec/gguf.md, section 5): opening any of them opens all."""

import re
from pathlib import Path
from typing import Final, NamedTuple

from refquant.checkpoints.gguf import GgufCheckpoint, GgufTensor, read_file
from refquant.checkpoints.gguf_values import ValueType
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError

SPLIT_NO: Final = "split.no"
SPLIT_COUNT: Final = "split.count"
SPLIT_TENSORS: Final = "split.tensors.count"
SPLIT_KEYS: Final = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)

_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL | re.ASCII)


class PartName(NamedTuple):
    """What the name of a file says: `prefix-00002-of-00005.gguf` is part 2 of 5."""

    prefix: str
    number: int
    total: int


def part_path(prefix: Path, number: int, count: int) -> Path:
    """The name of part `number`, from 1, of `count`."""
    return prefix.with_name(f"{prefix.name}-{number:05d}-of-{count:05d}.gguf")


def parse_part_name(path: Path) -> PartName | None:
    """What the name says, or None where it is not the name of a part."""
    match = _PART.fullmatch(path.name)
    return PartName(match[1], int(match[2]), int(match[3])) if match else None


def one_of_model(path: Path) -> str:
    """The name of the model that a file belongs to: its own, or that of the first part of all."""
    name = parse_part_name(path)
    return part_path(path.with_name(name.prefix), 1, name.total).name if name else path.name


def open_gguf(path: Path) -> GgufCheckpoint:
    """Open a GGUF file; of a split model, which any of its files names, all of them.

    Returns:
        The tensors of all parts, part by part; the metadata is the first part's.

    Raises:
        CheckpointError: a malformed file, a missing part, split.* keys that contradict the file names or each other,
            a tensor in two parts.
    """
    opened = read_file(path)
    name = parse_part_name(path)
    count = _split_value(opened, SPLIT_COUNT, ValueType.U16) or 0
    if count <= 1 and (name is None or name.total == 1):
        return opened
    if name is None:
        raise CheckpointError(
            f"{path}: {SPLIT_COUNT} is {count}, so this is one of {count} files; their names must end in "
            f"-00001-of-{count:05d}.gguf and so on"
        )
    if count != name.total or not 1 <= name.number <= name.total:
        raise CheckpointError(
            f"{path}: the name says part {name.number} of {name.total}, but {SPLIT_COUNT} is "
            f"{count or 'missing'}: rename the file to what it is"
        )
    paths = [part_path(path.with_name(name.prefix), number, count) for number in range(1, count + 1)]
    for part in paths:
        if not part.exists():
            raise CheckpointError(f"{path}: one of {count} files; {quoted(part.name)} is missing from {path.parent}")
    return _join(path, [opened if part == path else read_file(part) for part in paths])


def _join(path: Path, parts: list[GgufCheckpoint]) -> GgufCheckpoint:
    tensors: dict[str, GgufTensor] = {}
    for number, part in enumerate(parts):
        _expect(part, SPLIT_NO, ValueType.U16, number)
        _expect(part, SPLIT_COUNT, ValueType.U16, len(parts))
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError(
                    f"{path}: tensor {quoted(name)} is in {quoted(tensors[name].path.name)} and in "
                    f"{quoted(part.path.name)}"
                )
            tensors[name] = tensor
    for part in parts:
        if part is parts[0] or SPLIT_TENSORS in part.metadata:
            _expect(part, SPLIT_TENSORS, ValueType.I32, len(tensors))
    return GgufCheckpoint(path, tensors, parts[0].header)


def _expect(part: GgufCheckpoint, key: str, kind: ValueType, expected: int) -> None:
    value = _split_value(part, key, kind)
    if value != expected:
        raise CheckpointError(
            f"{part.path}: metadata {key!r} is {'missing' if value is None else value}; the other files and their "
            f"names say {expected}"
        )


def _split_value(part: GgufCheckpoint, key: str, kind: ValueType) -> int | None:
    if key not in part.metadata:
        return None
    value = part.metadata.typed(key)
    if value.type is not kind or not isinstance(value.value, int):
        raise CheckpointError(
            f"{part.path}: byte {part.metadata.start_of(key)}: metadata {key!r} is of type {value.type_name}; it must "
            f"be {kind.name.lower()}"
        )
    return value.value
