"""Interrupted writes leave no half file."""

import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from refquant.checkpoints.atomic import replacing
from refquant.errors import RefquantError

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf

def slow():
    print("writing", flush=True)
    time.sleep(60)
    return np.zeros(2, np.float32)

tensors = [TensorSource("a", "F32", (2,), lambda: np.zeros(2, np.float32)), TensorSource("b", "F32", (2,), slow)]
write_gguf(Path(sys.argv[1]), {}, tensors)
"""


def test_the_file_is_there_when_the_block_ends_and_not_before(tmp_path):
    with replacing(tmp_path / "x") as file:
        file.write(b"new")
        assert not (tmp_path / "x").exists()
        assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"new")]


def test_the_file_is_synced_before_it_is_renamed_and_the_folder_after(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "x").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with replacing(tmp_path / "x") as file:
        file.write(b"new")
    assert synced == [(False, False), (True, True)]


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "x").write_bytes(b"old")

    def write_half(error):
        with replacing(tmp_path / "x") as file:
            file.write(b"half")
            raise error

    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            write_half(error)
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


def test_a_reader_of_the_old_file_keeps_it(tmp_path):
    (tmp_path / "x").write_bytes(b"old")
    with (tmp_path / "x").open("rb") as old, replacing(tmp_path / "x") as file:
        file.write(b"new")
        file.flush()
        assert old.read() == b"old"


def test_a_new_file_has_the_permissions_that_any_new_file_has(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    with replacing(tmp_path / "x"):
        pass
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RefquantError, match="a folder; the output is a file"), replacing(tmp_path):
        pytest.fail("the block must not run")


def test_a_folder_that_is_not_there_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "no" / "x"):
        pytest.fail("the block must not run")


def test_a_very_long_name_still_has_room_for_the_temporary_one(tmp_path):
    with replacing(tmp_path / ("n" * 250)) as file:
        file.write(b"x")
    assert (tmp_path / ("n" * 250)).read_bytes() == b"x"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing(tmp_path, number):
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "x.gguf"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert writer.stdout.readline() == b"writing\n"
    assert len(list(tmp_path.iterdir())) == 1
    writer.send_signal(number)
    writer.communicate(timeout=30)
    assert writer.returncode != 0
    assert not list(tmp_path.iterdir())


def test_the_programs_own_handler_is_left_alone(tmp_path):
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with replacing(tmp_path / "x"):
            assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    with replacing(tmp_path / "x"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_threads_write_too(tmp_path):
    def write():
        with replacing(tmp_path / "x") as file:
            file.write(b"thread")

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert (tmp_path / "x").read_bytes() == b"thread"
