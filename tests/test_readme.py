"""The README is true: its Python session runs, and its tables name what exists."""

import doctest
import re
from pathlib import Path

import refquant as rq
from refquant.cli.app import COMMANDS

README = Path(__file__).parent.parent / "README.md"


def test_the_python_session_of_the_readme_gives_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the session writes a file
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 10
    assert result.failed == 0


def test_the_readme_has_the_two_commands():
    commands = re.findall(r"^```sh\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(commands) == 2
    assert "refquant bench" in commands[0]
    assert "pytest" in commands[1]


def test_every_scheme_in_the_readme_s_benchmark_is_one():
    table = re.findall(r"^\| ([a-z][a-z0-9-]*) +\|", README.read_text(encoding="utf-8"), re.MULTILINE)
    schemes = [name for name in table if name not in ("base", "scheme")]
    assert len(schemes) > 5
    for scheme in schemes:
        assert str(rq.get_format(scheme)) == scheme


def test_the_readme_names_every_command_and_format_family():
    text = README.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"`{command.__name__.rpartition('.')[2]}`" in text
    for name in rq.formats():
        assert name in text or name.startswith("int")
