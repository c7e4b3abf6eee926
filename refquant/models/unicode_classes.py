"""Code points by class, as the patterns of pre-tokenizers see them (spec/tokenizer.md, section 2)."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from refquant.arrays import UInt8
from refquant.errors import RefquantError

_TABLE: Final = Path(__file__).with_suffix(".txt")
_SHA256: Final = "579ca4f4d9a31458bb16428e028c1e057a17090f9c69c52cda68f2bb01af7bb4"
_CODE_POINTS: Final = 0x110000

_STAND_INS: Final = {"-": 0x80, "N": 0x81, "L": 0x82, "P": 0x83, "M": 0x84, "S": 0x86, "W": 0x0B}
_HAN_LETTER: Final = 0x87
_HAN_OTHER: Final = 0x88  # a code point of a Han block that is not assigned
_HAN: Final = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2EBEF),
    (0x2F800, 0x2FA1F),
)

MEMBERS: Final = {
    r"\p{N}": r"0-9\x81",
    r"\p{L}": r"A-Za-z\x82\x87",
    r"\p{Lu}": r"A-Z\x82\x87",
    r"\p{Ll}": r"a-z\x82\x87",
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}\x83",
    r"\p{M}": r"\x84",
    r"\p{S}": r"$+<->^`|~\x86",
    r"\p{Han}": r"\x87\x88",
}
"""What stands for a Unicode property inside the brackets of a pattern over `by_class`.

A letter beyond ASCII is in upper and in lower case at once.
"""


def by_class(text: str) -> str:
    """The text with every character beyond ASCII replaced by the stand-in of its class; white space becomes U+000B."""
    if text.isascii():
        return text
    points = np.frombuffer(text.encode("utf-32-le"), "<u4")  # (characters,)
    return str(_stand_ins()[points].tobytes(), "latin-1")


def with_plain_spaces(text: str) -> str:
    """The text with white space beyond ASCII replaced by U+000B, which is white space to every regex engine."""
    return text if text.isascii() else text.translate(_plain_spaces())


@cache
def _stand_ins() -> UInt8:
    """The stand-in of every code point, uint8 (0x110000,); of ASCII the character itself."""
    raw = _TABLE.read_bytes()
    if hashlib.sha256(raw).hexdigest() != _SHA256:
        raise RefquantError(f"{_TABLE} is not the table that refquant came with: install refquant again")
    words = [word for line in raw.decode("ascii").splitlines() if not line.startswith("#") for word in line.split()]
    starts = [int(word[:-1], 16) for word in words]
    classes = np.array([_STAND_INS[word[-1]] for word in words], np.uint8)
    lengths = np.diff([*starts, _CODE_POINTS])
    table = np.concatenate([np.arange(0x80, dtype=np.uint8), np.repeat(classes, lengths)])
    for first, last in _HAN:
        block = table[first : last + 1]
        block[:] = np.where(block == _STAND_INS["L"], _HAN_LETTER, _HAN_OTHER)
    return table


@cache
def _plain_spaces() -> dict[int, str]:
    spaces = np.flatnonzero(_stand_ins() == _STAND_INS["W"])
    return {int(point): "\x0b" for point in spaces if point >= 0x80}
