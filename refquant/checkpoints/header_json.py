"""A reader for the JSON that a safetensors header may hold, and for nothing else.

The header is an object of objects of strings and lists of natural numbers. Reading just that, from left to right,
needs no recursion and builds nothing that the caller did not ask for: `[[[[…` ends at its second bracket, and every
error knows its byte.
"""

import json
import re
from collections.abc import Iterator
from typing import Final, NoReturn

from refquant.checkpoints.text import quoted
from refquant.errors import CheckpointError

MAX_INTEGER: Final = 2**63 - 1
MAX_LIST: Final = 32

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_NATURAL: Final = re.compile(r"[ \t\n\r]*(0|[1-9][0-9]{0,18})(?![0-9.eE])")
_PUNCTUATION: Final = {mark: re.compile(rf"[ \t\n\r]*\{mark}") for mark in "{}[]:,"}
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DECODER: Final = json.JSONDecoder()


class HeaderReader:
    """A cursor in a header's text.

    Args:
        text: the header.
        where: the file, for messages.
        start: the byte of the file at which the header begins.
    """

    def __init__(self, text: str, where: str, start: int) -> None:
        self._text = text
        self._where = where
        self._start = start
        self._at = 0

    def members(self, what: str) -> Iterator[str]:
        """The keys of the object at the cursor; the caller reads each key's value before it asks for the next key.

        Raises:
            CheckpointError: no object, a key twice, or a comma or brace missing.
        """
        self._expect("{", what)
        seen = set()
        if self._skip("}"):
            return
        while True:
            begin = self._at
            key = self.string(f"a key of {what}")
            if key in seen:
                self._at = begin
                self.fail(f"the key {quoted(key)} occurs twice in {what}")
            seen.add(key)
            self._expect(":", what)
            yield key
            if self._skip("}"):
                return
            self._expect(",", what)

    def string(self, what: str) -> str:
        """The string at the cursor."""
        self._space()
        if not self._text.startswith('"', self._at):
            self.fail(f"{what} must be a string")
        try:
            value, end = _DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            self._at = error.pos
            reason = error.msg.removesuffix(" starting at")
            self.fail(f"{what}: {reason[0].lower()}{reason[1:]}")
        if _SURROGATE.search(value):
            self.fail(f"{what} has half of a surrogate pair, which is no character")
        self._at = end
        return str(value)

    def integers(self, what: str) -> tuple[int, ...]:
        """The list of natural numbers at the cursor."""
        self._expect("[", what)
        numbers: list[int] = []
        if self._skip("]"):
            return ()
        while True:
            if len(numbers) == MAX_LIST:
                self.fail(f"{what} has more than {MAX_LIST} entries")
            match = _NATURAL.match(self._text, self._at)
            if match is None or int(match[1]) > MAX_INTEGER:
                self.fail(f"{what}[{len(numbers)}] must be an integer from 0 to {MAX_INTEGER}")
            numbers.append(int(match[1]))
            self._at = match.end()
            if self._skip("]"):
                return tuple(numbers)
            self._expect(",", what)

    def end(self) -> None:
        """Only white space may follow."""
        self._space()
        if self._at != len(self._text):
            self.fail("the header goes on after its closing brace")

    def fail(self, message: str) -> NoReturn:
        """Raise a CheckpointError that shows where the cursor is."""
        self._space()
        byte = self._start + len(self._text[: self._at].encode("utf-8", "surrogatepass"))
        found = quoted(self._text[self._at : self._at + 24]) if self._at < len(self._text) else "the end of the header"
        raise CheckpointError(f"{self._where}: {message}; byte {byte} of the file is at {found}")

    def _space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _skip(self, mark: str) -> bool:
        match = _PUNCTUATION[mark].match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        return True

    def _expect(self, mark: str, what: str) -> None:
        if not self._skip(mark):
            self.fail(f"{what}: {mark!r} expected")
