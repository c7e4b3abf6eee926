"""What `perplexity` and `bench` measure on, and how: the options they share, and the files these name."""

import argparse
import json
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refquant.errors import RefquantError

if TYPE_CHECKING:
    from refquant.models.corpus import Text

SEPARATOR = "<|endoftext|>"


def add_text_arguments(parser: argparse.ArgumentParser, required: bool) -> argparse._MutuallyExclusiveGroup:
    """Add the options for a text and for how it is measured; returns the group of what may be the source."""
    group = parser.add_argument_group("the text")
    source = group.add_mutually_exclusive_group(required=required)
    default = "" if required else " (default: the excerpt of TinyStories that comes with refquant, --per-document)"
    source.add_argument("--text", type=Path, metavar="FILE", help=f"UTF-8 text, taken as it is{default}")
    source.add_argument(
        "--ids",
        type=Path,
        metavar="FILE",
        help="token ids instead: .json (a list, or a list of lists: documents), .npy, or numbers between white space",
    )
    group.add_argument(
        "--per-document",
        action="store_true",
        help="split the text at --separator: measure each document on its own",
    )
    group.add_argument(
        "--separator",
        default=SEPARATOR,
        metavar="TEXT",
        help="what stands between two documents; white space at their ends is dropped, and so are empty ones "
        f"(default: {SEPARATOR})",
    )
    group.add_argument("--limit", type=int, metavar="N", help="measure the first N tokens alone, BOS not counted")
    how = parser.add_argument_group("how it is measured")
    how.add_argument(
        "--method",
        metavar="sliding|chunked|per-document|llama.cpp",
        help="sliding: overlapping windows, every token but a document's first scored once; "
        "chunked: disjoint windows, the first token of each not scored; "
        "per-document: one window from each document's start, what lies beyond it left out; "
        "llama.cpp: disjoint windows, the second half of each scored, as llama-perplexity does "
        "(default: per-document with --per-document, else sliding)",
    )
    how.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="tokens seen together (default: the model's positions, at most 2048, or 512 for llama.cpp)",
    )
    how.add_argument("--stride", type=int, metavar="N", help="tokens between windows (default: half the window)")
    how.add_argument(
        "--bos",
        metavar="auto|always|never",
        default="auto",
        help="BOS before each document; auto: before text where the tokenizer adds one, not before ids (default: auto)",
    )
    return source


def read_measured(args: argparse.Namespace) -> "Text":
    """The text, documents or ids that the options name; the method they imply is set where none is given.

    Raises:
        RefquantError: a file that is not UTF-8, or not token ids; options that contradict each other.
        OSError: a file cannot be read.
    """
    args.method = args.method or ("per-document" if args.per_document else "sliding")
    if args.ids is not None:
        if args.per_document:
            raise RefquantError(
                f"--per-document given with --ids {args.ids}: ids have no separator; give a .json list of lists instead"
            )
        return read_ids(args.ids)
    from refquant.evaluation import split_documents

    text = read_text(args.text)
    if not args.per_document:
        return text
    documents = split_documents(text, args.separator)
    if not documents:
        raise RefquantError(f"{args.text}: nothing but separators and white space; there is no document to measure")
    return documents


def read_text(path: Path) -> str:
    """A UTF-8 file, line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefquantError(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); convert it first") from None


def read_ids(path: Path) -> "Text":
    """Token ids of a .json, .npy or text file; whether they suit the model is looked at later."""
    try:
        if path.suffix == ".npy":  # NumPy parses a header as Python: hence the errors of a parser below
            return np.array(np.lib.format.open_memmap(path, mode="r"))  # mapped first: a file cannot claim to be larger
        text = read_text(path)
        if path.suffix == ".json":
            return _checked_json(json.loads(text))
        return [int(word) for word in text.split()]
    except RefquantError as error:
        raise RefquantError(f"{path}: {error}") from None
    except (ValueError, OverflowError, RecursionError, SyntaxError, tokenize.TokenError) as error:
        kind = {".npy": "a .npy array", ".json": "a JSON list of numbers"}.get(path.suffix, "numbers and white space")
        raise RefquantError(f"{path}: not {kind}: {error}") from None


def _checked_json(value: object) -> "Text":
    def is_row(item: object) -> bool:
        return isinstance(item, list) and all(type(number) is int for number in item)

    if isinstance(value, list) and (is_row(value) or all(is_row(item) for item in value)):
        return value
    raise RefquantError("a JSON list of integers is needed, or a list of such lists, a document each")


def add_base_memory_argument(parser: argparse._ActionsContainer) -> None:
    """Add the bound on what the base's log-probabilities may take."""
    parser.add_argument(
        "--base-memory",
        type=_bytes,
        default=1 << 30,
        metavar="BYTES",
        help="memory for the base's log-probabilities, as 500M or 2G; beyond it a temporary file, removed in any case "
        "(default: 1G)",
    )


def _bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    digits, shift = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 0)
    if not digits.isascii() or not digits.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes such as 500M or 2G")
    return int(digits) << shift
