"""Special tokens inside a text: found longest first, as llama.cpp does (spec/tokenizer.md, section 4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

Fragment: TypeAlias = str | int
"""Text, or the id of a special token."""

_SPACES: Final = " \t\n\v\f\r"


@dataclass(frozen=True)
class SpecialToken:
    """A token that is found in a text before it is cut into words.

    Attributes:
        id: its id.
        text: what it is spelt.
        strips_left: whether white space before it belongs to it.
        strips_right: whether white space behind it belongs to it.
    """

    id: int
    text: str
    strips_left: bool = False
    strips_right: bool = False


class SpecialTokens:
    """Special tokens by length in UTF-8, the longest first; of one length, by id."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self._tokens = sorted(tokens, key=lambda token: (-len(token.text.encode("utf-8", "surrogateescape")), token.id))
        self._texts = {token.text for token in self._tokens}
        self._lengths = sorted({len(text) for text in self._texts})
        self._heads = {text[0] for text in self._texts}

    def partition(self, text: str) -> list[Fragment]:
        """The text cut at its special tokens: every place of the longest first, then in what is left of the next."""
        present = self._present(text)
        fragments: list[Fragment] = [text] if text else []
        for token in self._tokens:
            if token.text in present:
                fragments = [
                    part
                    for fragment in fragments
                    for part in (_cut(fragment, token) if isinstance(fragment, str) else [fragment])
                ]
        return fragments

    def _present(self, text: str) -> set[str]:
        """Those that the text spells somewhere: few of the thousands that some vocabularies have."""
        found: set[str] = set()
        for head in self._heads:
            at = text.find(head)
            while at >= 0:
                found.update(self._texts.intersection(text[at : at + length] for length in self._lengths))
                at = text.find(head, at + 1)
        return found


def _cut(text: str, token: SpecialToken) -> list[Fragment]:
    parts: list[Fragment] = []
    start = 0
    while (at := text.find(token.text, start)) >= 0:
        left = text[start:at].rstrip(_SPACES) if token.strips_left else text[start:at]
        parts += [left, token.id] if left else [token.id]
        start = at + len(token.text)
        while token.strips_right and start < len(text) and text[start] in _SPACES:
            start += 1
    return [*parts, text[start:]] if start < len(text) else parts
