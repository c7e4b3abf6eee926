"""Which tokens the model sees together, and which of them are scored (spec/evaluation.md)."""

from typing import NamedTuple

from refquant.errors import RefquantError, unknown_name

METHODS = ("sliding", "chunked", "per-document", "llama.cpp")


class Window(NamedTuple):
    """Tokens begin … end − 1 of a document, seen together; tokens first … end − 1 are scored.

    A scored token is predicted from those before it in the window, so begin < first, and the last token is never fed.
    """

    begin: int
    end: int
    first: int

    @property
    def fed(self) -> int:
        """Tokens that go through the model."""
        return self.end - 1 - self.begin

    @property
    def scored(self) -> int:
        """Tokens whose probability counts."""
        return self.end - self.first


def sliding_windows(n_tokens: int, window: int, stride: int) -> list[Window]:
    """Overlapping windows that score every token but the first exactly once.

    Args:
        n_tokens: tokens of the document; below 2 there is nothing to score and the list is empty.
        window: tokens in a window, at least 2.
        stride: tokens from one window's begin to the next one's, 1 … window − 1: a scored token needs one before it.
    """
    windows = [Window(0, min(window, n_tokens), 1)] if n_tokens > 1 else []
    while windows and windows[-1].end < n_tokens:
        begin = windows[-1].begin + stride
        windows.append(Window(begin, min(begin + window, n_tokens), first=windows[-1].end))
    return windows


def chunked_windows(n_tokens: int, window: int) -> list[Window]:
    """Disjoint windows, the last one shorter; the first token of each is context alone and is not scored."""
    begins = range(0, n_tokens - 1, window)
    return [Window(begin, min(begin + window, n_tokens), begin + 1) for begin in begins]


def first_window(n_tokens: int, window: int) -> list[Window]:
    """One window from the first token of the document; tokens beyond it are left out."""
    return sliding_windows(min(n_tokens, window), window, 1)


def llama_cpp_windows(n_tokens: int, window: int) -> list[Window]:
    """llama-perplexity's: disjoint windows, all whole, of which the second half is scored but for its first token."""
    begins = range(0, n_tokens - window + 1, window)
    return [Window(begin, begin + window, begin + window // 2 + 1) for begin in begins]


def windows_of(method: str, n_tokens: int, window: int, stride: int) -> list[Window]:
    """The windows of a document under a method whose numbers `check_windows` has passed."""
    match method:
        case "sliding":
            return sliding_windows(n_tokens, window, stride)
        case "chunked":
            return chunked_windows(n_tokens, window)
        case "llama.cpp":
            return llama_cpp_windows(n_tokens, window)
        case _:
            return first_window(n_tokens, window)


def check_windows(method: str, window: int, stride: int) -> None:
    """Raise unless the method exists and its window and stride make sense together."""
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if window < 2:
        raise RefquantError(f"window = {window} given; a window holds at least 2 tokens: one seen and one scored")
    if method == "llama.cpp" and window < 3:
        raise RefquantError(
            f"window = {window} given; method 'llama.cpp' scores the second half of a window but for its first token, "
            "so a window holds at least 3"
        )
    if method != "sliding" and stride != window:
        raise RefquantError(
            f"stride = {stride} given with window = {window} and method {method!r}, whose windows do not overlap: "
            "leave the stride out, or use method 'sliding'"
        )
    if method == "sliding" and not 1 <= stride < window:
        raise RefquantError(
            f"stride = {stride} given with window = {window}; 1 … {window - 1} are possible, "
            "since each scored token needs at least one before it in its window"
        )
