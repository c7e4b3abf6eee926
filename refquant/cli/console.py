"""What every command prints with: tables and documents on standard output, progress and errors on standard error."""

import json
import re
import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

# C0 and C1 controls and the bidirectional overrides: a name from a file must not steer the terminal. Lone surrogates,
# which stand for undecodable bytes of a path, cannot be written at all.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

UNBOUNDED = Console(width=10_000)  # to find how wide a table would like to be


def printable(text: str) -> str:
    """Text from a file or a user with every control character written as an escape."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def print_error(message: str) -> None:
    """One line on standard error."""
    print(f"refquant: error: {printable(message)}", file=sys.stderr)


def print_json(document: object) -> None:
    """One strict JSON document on standard output: a NaN in it is a bug, not a value."""
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    print(_CONTROLS.sub(lambda match: "\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text))


def progress() -> Progress:
    """A progress bar on standard error, shown on a terminal only; use as a context and `add_task`."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", caption: str = "") -> None:
    """A table on standard output; a column whose name starts with `>` is aligned right.

    In a pipe the table keeps its full width: nothing is cut to fit a terminal that is not there. A terminal too narrow
    gets columns closer together before any cell is folded.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title_justify="left", caption_justify="left")
    table.title, table.caption = (_lines(text) if text else None for text in (title, caption))
    for column in columns:
        table.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    width = Measurement.get(UNBOUNDED, UNBOUNDED.options, table).maximum
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(width, 80))
    elif width > console.width:
        table.padding = 0
    with console.capture() as shown:  # rich would end the program itself when the reader of a pipe has gone
        console.print(table)
    print(shown.get(), end="")


def _cell(text: str) -> Text:
    return Text(printable(text))  # Text: rich reads no markup in it


def _lines(text: str) -> Text:
    return Text("\n".join(printable(line) for line in text.split("\n")))
