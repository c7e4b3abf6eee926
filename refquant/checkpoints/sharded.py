"""Several safetensors files as one checkpoint, with an index or without (spec/safetensors.md, section 4)."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from refquant.checkpoints.checkpoint import Checkpoint, CheckpointTensor
from refquant.checkpoints.safetensors import read_file
from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError

MAX_INDEX: Final = 100_000_000
_NUMBERED: Final = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})\.safetensors", re.DOTALL | re.ASCII)


def read_index(path: Path) -> Checkpoint:
    """Open the shards that a `*.safetensors.index.json` names, and check that index and shards tell the same story.

    Raises:
        CheckpointError: an index that is malformed, that names a file elsewhere or one that is missing, or that
            disagrees with its shards about where a tensor is.
    """
    weight_map, metadata = _parse_index(path)
    shards: dict[str, Checkpoint] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if not (path.parent / shard).exists():
            count = Counter(weight_map.values())[shard]
            raise CheckpointError(f"{path}: shard {quoted(shard)}, with {count} tensors, is missing from {path.parent}")
        shards[shard] = read_file(path.parent / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{path}: tensor {quoted(name)} should be in {quoted(shard)}, which does not have it")
    for shard, checkpoint in shards.items():
        for name in checkpoint:
            if name not in weight_map:
                raise CheckpointError(f"{path}: tensor {quoted(name)} of {quoted(shard)} is not in the index")
            if weight_map[name] != shard:
                _two_places(path, name, weight_map[name], shard)
    tensors = {name: shards[shard][name] for name, shard in weight_map.items()}
    return Checkpoint(path, tensors, metadata | _shared_metadata(list(shards.values()), metadata))


def read_files(folder: Path, paths: Sequence[Path]) -> Checkpoint:
    """Open safetensors files that together are one checkpoint, without an index.

    Raises:
        CheckpointError: a tensor that is in two of them, a malformed file, or file names (`…-00001-of-00003`) that
            say that another is missing.
    """
    _check_numbering(folder, paths)
    shards = [read_file(path) for path in paths]
    tensors: dict[str, CheckpointTensor] = {}
    for shard in shards:
        for name, tensor in shard.items():
            if name in tensors:
                _two_places(folder, name, tensors[name].path.name, tensor.path.name)
            tensors[name] = tensor
    return Checkpoint(folder, tensors, _shared_metadata(shards, {}))


def _check_numbering(folder: Path, paths: Sequence[Path]) -> None:
    present = {path.name for path in paths}
    for name in sorted(present):
        match = _NUMBERED.fullmatch(name)
        if match is None:
            continue
        stem, number, count = match.groups()
        for i in range(1, min(int(count), len(paths) + 1) + 1):  # one of these is missing if any is
            other = f"{stem}-{i:0{len(number)}d}-of-{count}.safetensors"
            if other not in present:
                raise CheckpointError(
                    f"{folder}: {quoted(name)} is one of {int(count)} files; {quoted(other)} is missing"
                )


def _two_places(path: Path, name: str, first: str, second: str) -> NoReturn:
    raise CheckpointError(f"{path}: tensor {quoted(name)} is in {quoted(first)} and in {quoted(second)}")


def _shared_metadata(shards: Sequence[Checkpoint], taken: Mapping[str, object]) -> dict[str, object]:
    """Metadata that all files agree on, by its key; what they do not agree on, by `key@file`."""
    values: dict[str, set[str]] = {}
    for shard in shards:
        for key, value in shard.metadata.items():
            values.setdefault(key, set()).add(str(value))
    merged: dict[str, object] = {}
    for shard in shards:
        for key, value in shard.metadata.items():
            alone = len(values[key]) == 1 and key not in taken
            merged[key if alone else f"{key}@{shard.path.name}"] = value
    return merged


def _parse_index(path: Path) -> tuple[dict[str, str], dict[str, object]]:
    document = _read_json(path)
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: an index must be a JSON object with weight_map")
    weight_map, metadata = document.get("weight_map"), document.get("metadata", {})
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{path}: weight_map must be an object that gives each tensor's file; it is missing or empty"
        )
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: metadata must be an object")
    for name, shard in weight_map.items():
        what = f"{path}: weight_map[{quoted(name)}]"
        if not isinstance(shard, str):
            raise CheckpointError(f"{what} must be a file name, not {type(shard).__name__}")
        if shard in ("", ".", "..") or any(c in shard for c in "/\\:\0"):
            raise CheckpointError(f"{what} is {quoted(shard)}; a shard is a file beside its index, without a folder")
        if not shard.endswith(".safetensors"):
            raise CheckpointError(f"{what} is {quoted(shard)}; a shard ends in .safetensors")
        if not name:
            raise CheckpointError(f"{what}: a tensor has an empty name")
    return weight_map, metadata


def _read_json(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file")
    size = path.stat().st_size
    if size > MAX_INDEX:
        raise CheckpointError(f"{path}: {size} bytes long; an index has at most {MAX_INDEX}")
    try:
        document = json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_not_json,
            parse_float=_finite,
        )
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # half a surrogate pair, in whatever string
    except RecursionError:
        raise CheckpointError(f"{path}: not an index: nested too deeply") from None
    except ValueError as error:  # JSONDecodeError, UnicodeError, and what the hooks raise
        raise CheckpointError(f"{path}: not an index: {error}") from None
    return document


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {quoted(twice)} occurs twice")
    return members


def _not_json(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{quoted(text)} is beyond a float")
    return value
