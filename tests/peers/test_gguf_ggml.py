"""The GGUF reader and writer against ggml's own: the same content where both read a file, else the reason."""

import ctypes
import re
import subprocess
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings

from refquant.audit.file_type import NAMES
from refquant.checkpoints.ggml_types import REMOVED, TENSOR_TYPES
from refquant.checkpoints.gguf_header import read_header
from refquant.checkpoints.gguf_split import open_gguf
from refquant.checkpoints.gguf_split_writer import split_by_bytes, split_by_tensors, write_split
from refquant.checkpoints.gguf_values import ValueType, encoded, f32, numbers, string, strings, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.errors import CheckpointError
from tests.checkpoints.gguf_corpus import BROKEN, LOADED
from tests.checkpoints.test_broken_gguf import VALID, mutated
from tests.peers.ggml_gguf import CRASHED, Peer, metadata_bytes
from tests.peers.llama_cpp import ggml, source, tool
from tests.peers.smollm2 import gguf_path

pytestmark = pytest.mark.peers

# What ggml takes and refquant does not, by what refquant says; spec/gguf.md, section 4, gives each reason.
STRICTER = {
    "a key or name with a NUL": "has a NUL at its byte",
    "a key or name that is no UTF-8": "is not UTF-8",
    "a key of more than 65535 bytes": "the limit is 65535",
    "a tensor without a name": "the name of tensor .* is empty",
    "a dimension of 0": "dimension . is 0;",
    "no dimensions": "has 0 dimensions",
}


@pytest.fixture(scope="module")
def peer():
    peer = Peer()
    yield peer
    peer.close()


def description(content, path):
    """What `ggml_gguf.described` says, from refquant's reader."""
    header = read_header(content, path)
    pairs = []
    for key in header.metadata:
        value = header.metadata.typed(key)
        if value.type is ValueType.STR:
            stored = [until_nul(text).hex() for text in (value.value if value.is_array else [value.value])]
            stored = stored if value.is_array else stored[0]
        elif value.is_array:
            stored = value.value.tobytes().hex()
        else:
            stored = content[header.metadata.start_of(key) :][: np.dtype(NATIVE[value.type]).itemsize].hex()
            stored = f"{int(value.value):02x}" if value.type is ValueType.BOOL else stored
        kinds = [int(ValueType.ARR), int(value.type)] if value.is_array else [int(value.type)]
        pairs.append([key.encode().hex(), *kinds, stored])
    return {
        "version": header.version,
        "alignment": header.alignment,
        "data_start": header.data_start if header.entries else pytest.approx(header.data_start, abs=header.alignment),
        "metadata": pairs,
        "tensors": [
            [name.encode().hex(), e.type.type_id, [*e.shape[::-1], 1, 1, 1][:4], e.start - header.data_start]
            for name, e in header.entries.items()
        ],
    }


NATIVE = {
    kind: f"<{code}"
    for kind, code in zip(
        ValueType, ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "?", "", "", "u8", "i8", "f8"], strict=True
    )
}


def until_nul(text):
    return encoded(text).split(b"\0")[0]


def check(peer, content, path):
    """Compare one file and say how it went."""
    try:
        ours = read_header(content, path)
    except CheckpointError as error:
        theirs = peer.load(content, data=True)
        if theirs in (None, CRASHED):
            return "both refuse" if theirs is None else "refquant refuses, ggml ends the process"
        for reason, pattern in STRICTER.items():
            if re.search(pattern, str(error)):
                return f"refquant alone refuses: {reason}"
        raise AssertionError(f"ggml takes it; refquant: {error}") from None
    if ours.version == 1 or ours.byte_order == "big":
        assert peer.load(content) is None
        return f"ggml alone refuses: {'big-endian' if ours.byte_order == 'big' else 'version 1'}"
    theirs = peer.load(content)
    assert theirs == description(content, path)
    padded = -(-(ours.data_end - ours.data_start) // ours.alignment) * ours.alignment
    complete = len(content) >= ours.data_start + padded
    assert (peer.load(content, data=True) is not None) == (complete or not ours.entries)
    return "both read" if complete else "ggml alone refuses its data: the last padding is missing"


def test_every_case_of_ggmls_own_tests_is_here():
    text = (source() / "tests" / "test-gguf.cpp").read_text()
    cases = set(re.findall(r"^ *(?:// )?HANDCRAFTED_(\w+) += ", text, re.MULTILINE))
    assert len(cases) == 35
    assert cases <= set(BROKEN) | set(LOADED)
    assert {case for case in cases if case in LOADED} == {
        "HEADER_EMPTY", "HEADER_BAD_VERSION_1", "KV_SUCCESS", "TENSORS_SUCCESS", "TENSORS_CUSTOM_ALIGN",
        "DATA_SUCCESS", "DATA_CUSTOM_ALIGN",
    }  # fmt: skip


@pytest.mark.parametrize("case", LOADED)
def test_what_ggml_loads_reads_alike(case, peer, tmp_path):
    assert check(peer, LOADED[case], tmp_path) in (
        "both read",
        "ggml alone refuses: version 1",
        "ggml alone refuses its data: the last padding is missing",
    )


@pytest.mark.parametrize("case", BROKEN)
def test_what_refquant_refuses_ggml_refuses_or_the_page_says_why(case, peer, tmp_path):
    outcome = check(peer, BROKEN[case][0], tmp_path)
    assert outcome in ("both refuse", "refquant refuses, ggml ends the process") or "refquant alone" in outcome


@pytest.mark.parametrize("content", VALID[:1] + VALID[3:5], ids=["good", "values", "aligned"])
def test_every_truncation_is_read_or_refused_alike(content, peer, tmp_path):
    outcomes = Counter(check(peer, content[:length], tmp_path) for length in range(len(content) + 1))
    assert outcomes["both refuse"] > 100
    assert len(outcomes) > 1


def test_mutated_files_are_read_alike(peer, tmp_path_factory, record_property):
    folder, outcomes = tmp_path_factory.getbasetemp(), Counter()

    @settings(max_examples=2000, deadline=None)
    @given(content=mutated())
    def compare(content):
        outcomes[check(peer, content, folder)] += 1

    compare()
    print(f"\n{sum(outcomes.values())} mutated files: {dict(outcomes.most_common())}; ggml's crashes: {peer.crashes}")
    assert outcomes["both read"] > 20
    assert outcomes["both refuse"] > 100


def test_smollm2_written_again_is_the_same_file(tmp_path):
    path = gguf_path()
    checkpoint = open_gguf(path)
    write_gguf(tmp_path / "a.gguf", checkpoint.typed_metadata, [t.source() for t in checkpoint.tensors.values()])
    assert (tmp_path / "a.gguf").read_bytes() == path.read_bytes()


def small_model(size=96):
    """Metadata of several types, and tensors of several types whose last axis is not 1."""
    metadata = {
        "general.architecture": string("llama"),
        "general.file_type": u32(2),
        "a": strings(["", "é", "x" * 99]),
        "b": numbers(ValueType.F32, [1.5, -0.0]),
        "c": f32(0.1),
        "d": numbers(ValueType.BOOL, [True, False]),
    }
    rng = np.random.default_rng(0)
    tensors = []
    for i in range(7):
        dtype, row = [("F32", 4), ("Q8_0", 34 * size // 32), ("F16", 2)][i % 3]
        raw = np.frombuffer(rng.bytes((i + 2) * (row if dtype == "Q8_0" else row * size)), np.uint8)
        tensors.append(TensorSource(f"t{i}", dtype, (i + 2, size), lambda raw=raw: raw))
    return metadata, tensors


def test_ggml_writes_the_same_header(tmp_path):
    metadata, tensors = small_model()
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    header = metadata_bytes(tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes()[: len(header)] == header
    assert len(header) == open_gguf(tmp_path / "a.gguf").header.data_start


def run(*arguments):
    done = subprocess.run([tool("llama-gguf-split"), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("option", "value", "cut"),
    [
        ("--split-max-tensors", "3", lambda tensors: split_by_tensors(tensors, 3)),
        ("--split-max-size", "1M", lambda tensors: split_by_bytes(tensors, 10**6)),
    ],
)
def test_split_files_are_those_of_llama_gguf_split(tmp_path, option, value, cut):
    metadata, tensors = small_model(96 * 1024)
    write_gguf(tmp_path / "whole.gguf", metadata, tensors)
    run("--split", option, value, tmp_path / "whole.gguf", tmp_path / "theirs")
    paths = write_split(tmp_path / "ours", metadata, cut(tensors))
    theirs = sorted(tmp_path.glob("theirs-*"))
    assert len(theirs) == len(paths) > 1
    for ours, other in zip(paths, theirs, strict=True):
        assert ours.name.removeprefix("ours") == other.name.removeprefix("theirs")
        assert ours.read_bytes() == other.read_bytes()
    assert list(open_gguf(theirs[1])) == [t.name for t in tensors]


def test_llama_gguf_split_merges_what_is_split_here(tmp_path):
    metadata, tensors = small_model()
    write_gguf(tmp_path / "whole.gguf", metadata, tensors)
    write_split(tmp_path / "m", metadata, [[], *split_by_tensors(tensors, 2)])
    run("--merge", tmp_path / "m-00001-of-00005.gguf", tmp_path / "merged.gguf")
    merged, whole = open_gguf(tmp_path / "merged.gguf"), open_gguf(tmp_path / "whole.gguf")
    assert [(t.name, t.raw().tobytes()) for t in merged.tensors.values()] == [
        (t.name, t.raw().tobytes()) for t in whole.tensors.values()
    ]
    assert list(merged.metadata) == [*whole.metadata, "split.no", "split.tensors.count", "split.count"]


def test_file_types_have_the_numbers_of_llama_h():
    text = (source() / "include" / "llama.h").read_text()
    theirs = {
        int(number): name
        for name, number in re.findall(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+) *= (\d+),", text)  # removed ones too
    }
    assert {number: name for number, (name, _) in NAMES.items()} == theirs


def test_types_have_the_sizes_of_ggml():
    lib = ggml()
    lib.ggml_type_size.restype, lib.ggml_blck_size.restype = ctypes.c_size_t, ctypes.c_int64
    lib.ggml_type_name.restype = ctypes.c_char_p
    for number, kind in TENSOR_TYPES.items():
        assert (lib.ggml_blck_size(number), lib.ggml_type_size(number)) == (kind.block_size, kind.block_bytes)
        assert lib.ggml_type_name(number).decode().upper() == kind.name
    for number in REMOVED:
        assert lib.ggml_blck_size(number) == 0
    assert len(TENSOR_TYPES) + len(REMOVED) == int(re.search(r"GGML_TYPE_COUNT *= (\d+)", ggml_h())[1])


def ggml_h():
    return (source() / "ggml" / "include" / "ggml.h").read_text()
