"""Split models: opening any part opens all, and parts that do not fit together are refused."""

import re

import numpy as np
import pytest

from refquant.checkpoints.gguf_split import open_gguf, part_path
from refquant.checkpoints.gguf_split_writer import split_by_bytes, split_by_tensors, write_split
from refquant.checkpoints.gguf_values import i32, string, u16, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.errors import CheckpointError, RefquantError

METADATA = {"general.name": string("x"), "split.count": u16(9), "n": u32(1)}


def source(name, size=2):
    return TensorSource(name, "F32", (size,), lambda: np.full(size, ord(name), np.float32))


@pytest.fixture
def paths(tmp_path):
    return write_split(tmp_path / "m", METADATA, [[source("a"), source("b")], [source("c")], [source("d")]])


def rewrite(path, *names, **keys):
    """A part again, with other split.* keys; None leaves one out."""
    typed = {f"split.{key.replace('_', '.')}": value for key, value in keys.items()}
    write_gguf(path, {key: value for key, value in typed.items() if value is not None}, map(source, names))


def refused(path, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        open_gguf(path)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(str(path.parent))


class TestReading:
    @pytest.mark.parametrize("part", range(3))
    def test_any_part_opens_all(self, paths, part):
        checkpoint = open_gguf(paths[part])
        assert [(t.name, t.path.name, t.numpy()[0]) for t in checkpoint.values()] == [
            ("a", "m-00001-of-00003.gguf", 97),
            ("b", "m-00001-of-00003.gguf", 98),
            ("c", "m-00002-of-00003.gguf", 99),
            ("d", "m-00003-of-00003.gguf", 100),
        ]
        assert checkpoint.files == tuple(paths)
        assert checkpoint.path == paths[part]
        assert dict(checkpoint.metadata) == {
            "general.name": "x", "n": 1, "split.no": 0, "split.tensors.count": 4, "split.count": 3
        }  # fmt: skip

    def test_a_missing_part_is_named(self, paths):
        paths[1].unlink()
        for part in (paths[0], paths[2]):
            refused(part, "one of 3 files; 'm-00002-of-00003.gguf' is missing from")

    def test_a_broken_part_is_named(self, paths):
        paths[2].write_bytes(b"GGUF")
        refused(paths[0], "m-00003-of-00003.gguf: byte 4: the version takes 4 bytes")

    def test_a_part_whose_name_says_nothing_is_refused(self, paths, tmp_path):
        refused(paths[0].rename(tmp_path / "whole.gguf"), "split.count is 3, so this is one of 3 files")

    def test_a_name_that_contradicts_the_count_is_refused(self, paths, tmp_path):
        for number, total in ((1, 4), (4, 3), (0, 3)):
            renamed = paths[0].rename(part_path(tmp_path / "m", number, total))
            refused(renamed, f"the name says part {number} of {total}, but split.count is 3")
            renamed.rename(paths[0])

    def test_parts_in_each_others_place_are_refused(self, paths, tmp_path):
        paths[1].rename(tmp_path / "x")
        paths[2].rename(paths[1])
        (tmp_path / "x").rename(paths[2])
        refused(paths[0], "m-00002-of-00003.gguf: metadata 'split.no' is 2; the other files and their names say 1")

    def test_a_file_named_like_a_part_that_is_none_is_refused(self, tmp_path):
        write_gguf(tmp_path / "m-00001-of-00002.gguf", {}, [source("a")])
        refused(tmp_path / "m-00001-of-00002.gguf", "part 1 of 2, but split.count is missing")

    def test_one_of_one_is_whole(self, tmp_path):
        write_gguf(tmp_path / "m-00001-of-00001.gguf", {}, [source("a")])
        write_gguf(tmp_path / "merged.gguf", {"split.count": u16(0)}, [source("a")])
        assert list(open_gguf(tmp_path / "m-00001-of-00001.gguf")) == ["a"]
        assert list(open_gguf(tmp_path / "merged.gguf")) == ["a"]

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"no": None}, "metadata 'split.no' is missing; the other files and their names say 1"),
            ({"no": u16(2)}, "metadata 'split.no' is 2; the other files and their names say 1"),
            ({"count": None}, "metadata 'split.count' is missing; the other files and their names say 3"),
            ({"count": u16(4)}, "metadata 'split.count' is 4; the other files and their names say 3"),
            ({"tensors_count": i32(5)}, "metadata 'split.tensors.count' is 5; the other files and their names say 4"),
            ({"no": u32(1)}, "metadata 'split.no' is of type u32; it must be u16"),
        ],
    )
    def test_keys_that_contradict_are_refused(self, paths, keys, message):
        rewrite(paths[1], "c", **({"no": u16(1), "count": u16(3), "tensors_count": i32(4)} | keys))
        refused(paths[0], message)

    def test_later_parts_need_no_count_of_tensors(self, paths):
        rewrite(paths[1], "c", no=u16(1), count=u16(3))
        assert list(open_gguf(paths[0])) == ["a", "b", "c", "d"]

    def test_a_tensor_too_few_is_refused(self, paths):
        rewrite(paths[1], no=u16(1), count=u16(3), tensors_count=i32(4))
        refused(paths[0], "m-00001-of-00003.gguf: metadata 'split.tensors.count' is 4; the other files")

    def test_a_tensor_in_two_parts_is_refused(self, paths):
        rewrite(paths[1], "a", no=u16(1), count=u16(3), tensors_count=i32(4))
        refused(paths[0], "tensor 'a' is in 'm-00001-of-00003.gguf' and in 'm-00002-of-00003.gguf'")


class TestWriting:
    def test_parts_hold_at_most_so_many_tensors(self):
        parts = split_by_tensors(map(source, "abcde"), 2)
        assert [[t.name for t in part] for part in parts] == [["a", "b"], ["c", "d"], ["e"]]

    def test_parts_hold_at_most_so_many_bytes_with_padding(self):
        tensors = [source("a", 8), source("b", 1), source("c", 9), source("d", 999), source("e", 1)]
        parts = split_by_bytes(tensors, 64)
        assert [[t.name for t in part] for part in parts] == [["a", "b"], ["c"], ["d"], ["e"]]

    def test_the_first_part_may_hold_metadata_alone(self, tmp_path):
        paths = write_split(tmp_path / "m", METADATA, [[], [source("a")]])
        assert list(open_gguf(paths[1])) == ["a"]

    def test_the_alignment_is_said_in_every_part(self, tmp_path):
        tensors = [[source("a"), source("b")], [source("c"), source("d")]]
        paths = write_split(tmp_path / "m", {"general.alignment": u32(256)}, tensors)
        assert [t.numpy()[0] for t in open_gguf(paths[0]).values()] == [97, 98, 99, 100]

    def test_no_part_appears_when_one_fails(self, tmp_path):
        bad = TensorSource("c", "F32", (2,), lambda: np.zeros(3, np.float32))
        with pytest.raises(RefquantError, match="tensor 'c'"):
            write_split(tmp_path / "m", {}, [[source("a")], [bad]])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("parts", [[], [[source("a")], [source("a")]]])
    def test_no_parts_and_tensors_in_two_are_refused(self, tmp_path, parts):
        with pytest.raises(RefquantError, match=r"0 parts given|'a' given twice"):
            write_split(tmp_path / "m", {}, parts)

    @pytest.mark.parametrize("split", [split_by_tensors, split_by_bytes])
    def test_a_limit_of_nothing_is_refused(self, split):
        with pytest.raises(RefquantError, match="at least 1"):
            split([], 0)
