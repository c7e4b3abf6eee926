"""The order in which llama.cpp takes the tensors of a model: blocks ascending, names within them."""

import re
from typing import Final

_BLOCK: Final = re.compile(r"blk\.\s*([+-]?\d+)", re.ASCII)


def block_number(name: str) -> int | None:
    """The number after `blk.` at the start of a name; None without one."""
    found = _BLOCK.match(name)
    return int(found[1]) if found else None


def output_order(name: str) -> tuple[int, bytes]:
    """What names are sorted by: tensors outside the blocks come first, and bytes decide within a block."""
    block = block_number(name)
    return (-1 if block is None else block, name.encode("utf-8", "surrogateescape"))
