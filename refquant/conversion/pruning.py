"""Leaving blocks out and numbering the others anew (spec/file_types.md, section 6)."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_BLOCK: Final = re.compile(r"blk\.(\d+)\.", re.ASCII)


class Pruned(NamedTuple):
    """What is left of a model.

    Attributes:
        names: the new name of every tensor that stays, by its old one, in the order given.
        blocks: how many blocks are left; None where nothing was to be left out.
    """

    names: dict[str, str]
    blocks: int | None


def prune(names: Sequence[str], layers: Iterable[int]) -> Pruned:
    """Leave out the tensors of some blocks; the blocks after them move up.

    Args:
        names: tensor names in the order of the output, blocks ascending.
        layers: the blocks to leave out.
    """
    pruned = frozenset(layers)
    if not pruned:
        return Pruned({name: name for name in names}, None)
    numbers: dict[int, int] = {}
    left = 0
    kept: dict[str, str] = {}
    for name in names:
        found = _BLOCK.search(name)
        if found is None:
            kept[name] = name
            continue
        block = int(found[1])
        if block in pruned:
            continue
        if block not in numbers:  # blocks before the first that goes keep their number, gaps and all
            numbers[block] = block if block < min(pruned) else left
            left = numbers[block] + 1
        kept[name] = f"{name[: found.start(1)]}{numbers[block]}{name[found.end(1) :]}"
    return Pruned(kept, left)
