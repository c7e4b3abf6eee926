"""The program `refquant`: its argument parser, and how errors become messages and exit codes."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

from refquant import __version__
from refquant.cli import bench, formats, generate, imatrix, inspect, perplexity, quantize
from refquant.cli.console import print_error
from refquant.errors import RefquantError

COMMANDS = (bench, perplexity, generate, quantize, imatrix, inspect, formats)

EPILOG = """\
exit codes:
  0  fine
  1  a finding or a mismatch
  2  bad usage or unreadable input

`refquant COMMAND --help` explains a command with examples. `refquant bench` needs nothing: it has a model inside.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole program."""
    parser = argparse.ArgumentParser(
        prog="refquant",
        description="The referee of LLM weight quantization: what quantized bytes mean, and what they cost.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"refquant {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: no traceback reaches a user for bad input."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows escapes instead of ending the program
            stream.reconfigure(errors="backslashreplace")
    args = build_parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `refquant … | head`: the reader has gone, and so has what we still had to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RefquantError, OSError) as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        print_error("interrupted")
        return 130
    return code
