"""Files that appear whole or not at all."""

import os
import secrets
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from refquant.errors import RefquantError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` when the block ends and is removed when it raises.

    It is written in the folder of `path`, synced, and renamed over what is there: whoever opens `path`, whenever,
    finds the old file or the whole new one. Ctrl-C and SIGTERM remove it too; only a kill or a power cut leaves it
    behind, hidden, with a name that ends in `.part`.

    Raises:
        RefquantError: `path` is a folder.
        OSError: the folder is not there, or the system does not let us write in it.
    """
    if path.is_dir():
        raise RefquantError(f"{path}: a folder; the output is a file")
    partial = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    with _raising_on_sigterm():
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself last, where the system has such a thing."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block, unless the program has a handler of its own for it."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
