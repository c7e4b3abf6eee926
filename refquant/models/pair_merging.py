"""Merging neighbouring symbols, the best pair first: what byte-pair and SentencePiece's BPE have in common."""

import itertools
import re
from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush

Priority = Callable[[str, str], float | None]
"""The rank of a pair, the least first; None: it does not merge."""


def merge_pairs(symbols: list[str], priority: Priority) -> list[str]:
    """Merge the best pair of neighbours, among equals the leftmost, until none merges.

    Args:
        symbols: what a word is written in; none is empty.
        priority: the rank of a pair.

    Returns:
        The symbols that are left.
    """
    symbols = list(symbols)
    after = list(range(1, len(symbols) + 1))  # the next living symbol; len(symbols): none
    before = list(range(-1, len(symbols) - 1))
    heap: list[tuple[float, int, int, int]] = []  # rank, left, right, length of the two together

    def offer(left: int, right: int) -> tuple[float, int, int, int] | None:
        rank = priority(symbols[left], symbols[right])
        return None if rank is None else (rank, left, right, len(symbols[left]) + len(symbols[right]))

    heap = [entry for left in range(len(symbols) - 1) for entry in [offer(left, left + 1)] if entry]
    heapify(heap)
    while heap:
        _, left, right, length = heappop(heap)
        if not symbols[left] or not symbols[right] or len(symbols[left]) + len(symbols[right]) != length:
            continue  # one of the two has merged with another since
        symbols[left] += symbols[right]
        symbols[right] = ""
        after[left] = after[right]
        if after[left] < len(symbols):
            before[after[left]] = left
            if entry := offer(left, after[left]):
                heappush(heap, entry)
        if before[left] >= 0 and (entry := offer(before[left], left)):
            heappush(heap, entry)
    return [symbol for symbol in symbols if symbol]


def word_starts(merged: Iterable[str], marker: str) -> re.Pattern[str]:
    """The places before `marker` at which a text can be cut without changing what merges.

    A pair merges across a place only if the result has the two characters around it next to each other. So a text may
    be cut before a marker behind every character that stands before a marker inside no result.

    Args:
        merged: everything that merging can give.
        marker: one character, which begins words.
    """
    behind = re.compile(f"(?s:.)(?={re.escape(marker)})")
    inside = {character for text in merged if text.find(marker, 1) > 0 for character in behind.findall(text)}
    barred = "".join(map(re.escape, sorted(inside)))
    return re.compile(f"(?<![{barred}]){re.escape(marker)}" if barred else re.escape(marker))


def cut_before(text: str, starts: re.Pattern[str]) -> list[str]:
    """The text cut at the places that `word_starts` found."""
    places = [0, *(match.start() for match in starts.finditer(text) if match.start()), len(text)]
    return [text[i:j] for i, j in itertools.pairwise(places)]
