"""The command line: one file a command, each a thin wrapper over the library."""

from refquant.cli.app import main

__all__ = ["main"]
