"""Importance matrix files against llama-imatrix, which computes them, converts them and writes both kinds."""

import subprocess

import pytest

from refquant.checkpoints.imatrix import read_imatrix, write_imatrix
from tests.peers.llama_cpp import tool
from tests.peers.smollm2 import gguf_path, wikitext

pytestmark = [pytest.mark.peers, pytest.mark.slow]


def llama_imatrix(*arguments):
    command = [str(argument) for argument in (tool("llama-imatrix"), "-m", gguf_path(), "-c", 64, *arguments)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An importance matrix of a short text in both kinds, `i.gguf` and `i.dat`."""
    path = tmp_path_factory.mktemp("imatrix")
    (path / "text.txt").write_text(wikitext()[:2000], encoding="utf-8")
    llama_imatrix("-f", path / "text.txt", "-o", path / "i.gguf", "--chunks", 2)
    llama_imatrix("--in-file", path / "i.gguf", "-o", path / "i.dat", "--output-format", "dat")
    return path


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_a_file_that_is_read_and_written_is_the_same_to_the_byte(folder, tmp_path, kind):
    imatrix = read_imatrix(folder / f"i.{kind}")
    assert len(imatrix.entries) == 210
    write_imatrix(tmp_path / f"i.{kind}", imatrix)
    assert (tmp_path / f"i.{kind}").read_bytes() == (folder / f"i.{kind}").read_bytes()


def test_a_gguf_becomes_the_legacy_file_that_llama_imatrix_makes_of_it(folder, tmp_path):
    write_imatrix(tmp_path / "i.dat", read_imatrix(folder / "i.gguf"))
    assert (tmp_path / "i.dat").read_bytes() == (folder / "i.dat").read_bytes()


def test_a_legacy_file_becomes_the_gguf_that_llama_imatrix_makes_of_it(folder, tmp_path):
    llama_imatrix("--in-file", folder / "i.dat", "-o", tmp_path / "theirs.gguf")
    write_imatrix(tmp_path / "ours.gguf", read_imatrix(folder / "i.dat").in_tokens(64))
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
