"""Text from files, as messages show it."""

from typing import Final

LONGEST: Final = 80


def quoted(text: str) -> str:
    """Text in quotes, with what is not printable escaped and the middle of long text left out."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 4 :]}"
    return repr(text) if text.isprintable() else ascii(text)
