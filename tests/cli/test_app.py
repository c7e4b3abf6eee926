"""The program as a whole: help, exit codes, and no traceback for what a user can do wrong."""

import json
import os
import subprocess
import sys

import pytest

from refquant.cli import main
from refquant.cli.app import COMMANDS

NAMES = [command.__name__.rpartition(".")[2] for command in COMMANDS]


def program(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "refquant", *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("command", NAMES)
def test_every_command_explains_itself_with_examples(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "example" in shown
    assert f"refquant {command}" in shown
    assert "--json" in shown


def test_the_commands_are_those_of_the_readme():
    assert sorted(NAMES) == ["bench", "formats", "generate", "imatrix", "inspect", "perplexity", "quantize"]


def test_python_m_refquant_is_the_same_program():
    result = program("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("refquant 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["benhc"],
        ["bench", "--formats"],
        ["bench", "no/such/folder"],
        ["bench", "--formats", "int4-g128-asm"],
        ["bench", "--text", "no/such/text"],
        ["perplexity", "no/such/folder", "--text", "no/such/text"],
        ["generate", "no/such/folder", "--prompt", "x"],
        ["inspect", "no/such/file"],
        ["inspect", "."],
        ["formats", "int9"],
    ],
    ids=" ".join,
)
def test_bad_usage_and_unreadable_input_exit_with_2_and_a_message(arguments):
    result = program(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr
    assert result.stdout == ""


def test_formats_lists_every_format(capsys):
    assert main(["formats"]) == 0
    shown = capsys.readouterr().out
    assert "int4" in shown
    assert "nf4-b64" in shown
    assert "g#" in shown


def test_formats_as_json_explains_schemes(capsys):
    assert main(["formats", "int4-g128-asym", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {
        "scheme": "int4-g128-asym",
        "name": "int4",
        "bits_per_weight": 4.28125,
        "block_size": 128,
        "parts": ["codes", "scales", "zeros"],
        "options": ["g#", "row", "asym", "f16", "bf16"],
    }


def test_a_reader_that_leaves_early_is_no_error():
    shell = f"{sys.executable} -m refquant formats | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_terminal_of_ascii_gets_escapes_and_no_traceback():
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    result = program("formats", "--json", env=ascii_only)
    assert result.returncode == 0
    result = program("inspect", "caf\u00e9", env=ascii_only)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert program("generate", "--prompt", "caf\u00e9 \u2603", "--max-tokens", "3", env=ascii_only).returncode == 0
