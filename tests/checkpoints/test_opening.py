"""What a path may be: a file, an index with its shards, a folder; and everything else, refused by name."""

import json
import os
import pickle
import re

import numpy as np
import pytest

import refquant as rq
from refquant.checkpoints.gguf_split_writer import write_split
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.errors import CheckpointError
from tests.checkpoints.files import floats, write

INDEX = "model.safetensors.index.json"
ESCAPES = ["", ".", "..", "../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "sub/x.safetensors"]
ESCAPES += ["..\\x.safetensors", "C:x.safetensors", "x\0.safetensors"]


def source(name):
    return TensorSource(name, "F32", (2,), lambda: np.array([1, 2], np.float32))


@pytest.fixture
def sharded(tmp_path):
    """Two shards and their index."""
    write(
        tmp_path / "model-00001-of-00002.safetensors", {"a": floats(1), "b": floats(2, 3)}, {"format": "pt", "n": "1"}
    )
    write(tmp_path / "model-00002-of-00002.safetensors", {"c": floats(4)}, {"format": "pt", "n": "2"})
    weight_map = {
        "c": "model-00002-of-00002.safetensors",
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
    }
    write_index(tmp_path, weight_map, {"total_size": 16})
    return tmp_path


def write_index(folder, weight_map, metadata=None):
    document = {"weight_map": weight_map} if metadata is None else {"metadata": metadata, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(document))


def change(folder, **weight_map):
    """Change entries of the index; None leaves one out."""
    changed = json.loads((folder / INDEX).read_text())["weight_map"] | weight_map
    write_index(folder, {k: v for k, v in changed.items() if v is not None})


def refused(path, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        rq.open(path)
    assert str(error.value).isprintable()
    assert str(error.value).startswith(str(path))


class TestFolder:
    def test_model_safetensors_comes_first(self, sharded):
        write(sharded / "model.safetensors", {"whole": floats(1)})
        checkpoint = rq.open(sharded)
        assert list(checkpoint) == ["whole"]
        assert checkpoint.path == sharded

    def test_the_index_comes_second(self, sharded):
        write(sharded / "consolidated.safetensors", {"other": floats(1)})
        assert list(rq.open(sharded)) == ["c", "a", "b"]

    def test_an_index_of_another_name_will_do(self, sharded):
        (sharded / INDEX).rename(sharded / "diffusion.safetensors.index.json")
        assert list(rq.open(str(sharded))) == ["c", "a", "b"]

    def test_several_indices_are_not_guessed_between(self, sharded):
        (sharded / INDEX).rename(sharded / "a.safetensors.index.json")
        (sharded / "b.safetensors.index.json").write_text("{}")
        refused(sharded, "several indices (a.safetensors.index.json, b.safetensors.index.json)")

    def test_files_without_an_index_are_one_checkpoint(self, sharded):
        (sharded / INDEX).unlink()
        checkpoint = rq.open(sharded)
        assert list(checkpoint) == ["a", "b", "c"]
        assert len(checkpoint.files) == 2

    def test_a_single_file_of_any_name_will_do(self, tmp_path):
        write(tmp_path / "weights.safetensors", {"a": floats(1)}, {"k": "v"})
        checkpoint = rq.open(tmp_path)
        assert (list(checkpoint), checkpoint.metadata) == (["a"], {"k": "v"})

    def test_a_missing_number_is_noticed_without_an_index(self, sharded):
        (sharded / INDEX).unlink()
        (sharded / "model-00001-of-00002.safetensors").unlink()
        refused(
            sharded,
            "'model-00002-of-00002.safetensors' is one of 2 files; 'model-00001-of-00002.safetensors' is missing",
        )

    def test_a_claim_of_many_files_costs_nothing(self, tmp_path):
        write(tmp_path / "m-000000001-of-999999999.safetensors", {"a": floats(1)})
        refused(tmp_path, "'m-000000002-of-999999999.safetensors' is missing")

    def test_a_tensor_in_two_files_is_refused(self, sharded):
        (sharded / INDEX).unlink()
        write(sharded / "x.safetensors", {"c": floats(4)})
        refused(sharded, "tensor 'c' is in 'model-00002-of-00002.safetensors' and in 'x.safetensors'")

    def test_an_empty_folder_says_what_was_looked_for(self, tmp_path):
        refused(
            tmp_path, "no model.safetensors, no *.safetensors.index.json, no *.safetensors and no *.gguf in this folder"
        )

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
    def test_a_folder_of_pickles_is_refused_as_such(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"PK\3\4")
        refused(tmp_path, f"{name} is a pickle: loading one runs the code in it")

    def test_its_only_gguf_file_is_opened(self, tmp_path):
        write_gguf(tmp_path / "any.gguf", {}, [source("a")])
        checkpoint = rq.open(tmp_path)
        assert (list(checkpoint), checkpoint.path) == (["a"], tmp_path)

    def test_a_split_gguf_model_is_one(self, tmp_path):
        write_split(tmp_path / "any", {}, [[source("a")], [source("b")]])
        assert list(rq.open(tmp_path)) == ["a", "b"]

    def test_several_gguf_models_are_not_guessed_between(self, tmp_path):
        write_gguf(tmp_path / "b.gguf", {}, [source("a")])
        write_split(tmp_path / "a", {}, [[source("a")], [source("b")]])
        refused(tmp_path, "several GGUF models (a-00001-of-00002.gguf, b.gguf); open one by its path")

    def test_safetensors_come_before_gguf(self, tmp_path):
        write_gguf(tmp_path / "b.gguf", {}, [source("a")])
        write(tmp_path / "any.safetensors", {"s": floats(1)})
        assert list(rq.open(tmp_path)) == ["s"]


class TestIndex:
    def test_tensors_come_in_its_order_from_their_files(self, sharded):
        for path in (sharded, sharded / INDEX):
            checkpoint = rq.open(path)
            assert [(n, t.path.name[6:11], t.dequantize().tolist()) for n, t in checkpoint.items()] == [
                ("c", "00002", [4]),
                ("a", "00001", [1]),
                ("b", "00001", [2, 3]),
            ]
            assert checkpoint.nbytes == 16

    def test_metadata_is_the_index_s_and_what_the_files_agree_on(self, sharded):
        assert rq.open(sharded).metadata == {
            "total_size": 16,
            "format": "pt",
            "n@model-00001-of-00002.safetensors": "1",
            "n@model-00002-of-00002.safetensors": "2",
        }

    def test_metadata_of_a_file_does_not_replace_that_of_the_index(self, sharded):
        change(sharded)
        write_index(sharded, json.loads((sharded / INDEX).read_text())["weight_map"], {"format": 7})
        metadata = rq.open(sharded).metadata
        assert metadata["format"] == 7
        assert metadata["format@model-00001-of-00002.safetensors"] == "pt"

    def test_a_missing_shard_is_named(self, sharded):
        (sharded / "model-00001-of-00002.safetensors").unlink()
        refused(sharded / INDEX, "shard 'model-00001-of-00002.safetensors', with 2 tensors, is missing from")

    def test_a_shard_that_is_a_folder_is_refused(self, sharded):
        (sharded / "model-00002-of-00002.safetensors").unlink()
        (sharded / "model-00002-of-00002.safetensors").mkdir()
        with pytest.raises(CheckpointError, match="not a regular file"):
            rq.open(sharded)

    def test_a_tensor_missing_from_its_shard_is_named(self, sharded):
        change(sharded, d="model-00001-of-00002.safetensors")
        refused(sharded / INDEX, "tensor 'd' should be in 'model-00001-of-00002.safetensors', which does not have it")

    def test_a_tensor_missing_from_the_index_is_named(self, sharded):
        change(sharded, b=None)
        refused(sharded / INDEX, "tensor 'b' of 'model-00001-of-00002.safetensors' is not in the index")

    def test_a_tensor_in_two_shards_is_named(self, sharded):
        write(sharded / "model-00002-of-00002.safetensors", {"c": floats(4), "a": floats(9)})
        refused(
            sharded / INDEX,
            "tensor 'a' is in 'model-00001-of-00002.safetensors' and in 'model-00002-of-00002.safetensors'",
        )

    @pytest.mark.parametrize("escape", ESCAPES)
    def test_a_path_out_of_the_folder_is_refused(self, sharded, escape):
        write(sharded.parent / "x.safetensors", {"a": floats(1)})
        change(sharded, a=escape)
        refused(sharded / INDEX, "a shard is a file beside its index, without a folder")

    def test_a_shard_that_is_no_safetensors_file_is_refused(self, sharded):
        change(sharded, a="pytorch_model.bin")
        refused(sharded / INDEX, "weight_map['a'] is 'pytorch_model.bin'; a shard ends in .safetensors")

    def test_a_link_to_a_file_elsewhere_is_followed_as_download_caches_need(self, sharded):
        blob = sharded / "blobs" / "0123"
        blob.parent.mkdir()
        shard = sharded / "model-00001-of-00002.safetensors"
        shard.rename(blob)
        shard.symlink_to(blob)
        assert rq.open(sharded)["a"].dequantize().tolist() == [1]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not an index: Expecting value"),
            (b"\xff", "not an index: 'utf-8' codec can't decode byte 0xff"),
            (b"[]", "an index must be a JSON object with weight_map"),
            (b"{}", "weight_map must be an object that gives each tensor's file; it is missing or empty"),
            (b'{"weight_map": {}}', "it is missing or empty"),
            (b'{"weight_map": []}', "it is missing or empty"),
            (b'{"weight_map": {"a": 1}}', "weight_map['a'] must be a file name, not int"),
            (b'{"weight_map": {"a": null}}', "weight_map['a'] must be a file name, not NoneType"),
            (b'{"weight_map": {"": "x.safetensors"}}', "a tensor has an empty name"),
            (b'{"weight_map": {"a": "x.safetensors"}, "metadata": []}', "metadata must be an object"),
            (b'{"weight_map": {"a": "b", "a": "c"}}', "not an index: the key 'a' occurs twice"),
            (b'{"weight_map": {"\\ud800": "x.safetensors"}}', "not an index: "),
            (b'{"weight_map": {"a": "x.safetensors"}, "metadata": {"n": NaN}}', "NaN is not JSON"),
            (b'{"weight_map": {"a": "x.safetensors"}, "metadata": {"n": 1e999}}', "'1e999' is beyond a float"),
            (b'{"metadata": ' + b"9" * 5000 + b"}", "not an index: "),
            (b"[" * 100_000, "not an index: nested too deeply"),
            (b'{"a":' * 100_000, "not an index: nested too deeply"),
        ],
        ids=lambda v: v[:40].decode("latin-1") if isinstance(v, bytes) else "",
    )
    def test_a_malformed_index_is_refused(self, tmp_path, content, message):
        (tmp_path / INDEX).write_bytes(content)
        refused(tmp_path / INDEX, message)

    def test_an_index_over_the_limit_is_not_read(self, tmp_path):
        with (tmp_path / INDEX).open("wb") as file:
            file.truncate(100_000_001)
        refused(tmp_path / INDEX, "100000001 bytes long; an index has at most 100000000")


class TestOtherFiles:
    def test_a_missing_path(self, tmp_path):
        refused(tmp_path / "nothing", "no such file or folder")
        refused(tmp_path / "nothing.safetensors", "no such file or folder")

    def test_a_pickle_is_refused_by_name_or_content(self, tmp_path):
        for name in ("pytorch_model.bin", "x.pt", "x.pth", "x.ckpt", "x.pkl"):
            (tmp_path / name).write_bytes(b"anything")
            refused(tmp_path / name, "a pickle: loading one runs the code in it")
        for protocol in (2, 3, 4, 5):
            (tmp_path / "weights").write_bytes(pickle.dumps({"a": 1}, protocol))
            refused(tmp_path / "weights", "a pickle")

    def test_a_gguf_file_is_known_by_its_name_or_its_content(self, tmp_path):
        for name, content in (("model.gguf", b""), ("model", b"GGUF\3\0\0\0")):
            (tmp_path / name).write_bytes(content)
            refused(tmp_path / name, "a GGUF file begins with" if not content else "the number of tensors")
        write_gguf(tmp_path / "blob", {}, [source("a")])
        assert rq.open(tmp_path / "blob")["a"].dequantize().tolist() == [1, 2]

    @pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(99)])
    def test_any_other_file_is_refused(self, tmp_path, content):
        (tmp_path / "x").write_bytes(content)
        refused(tmp_path / "x", "not a checkpoint that refquant reads")

    def test_a_safetensors_file_needs_no_suffix(self, tmp_path):
        assert rq.open(write(tmp_path / "blob", {"a": floats(1)}))["a"].dequantize().tolist() == [1]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    @pytest.mark.parametrize("name", ["x.safetensors", "x"])
    def test_a_pipe_is_refused_without_waiting_for_it(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, "not a regular file")
        os.mkfifo(tmp_path / INDEX)
        refused(tmp_path / INDEX, "not a regular file")
