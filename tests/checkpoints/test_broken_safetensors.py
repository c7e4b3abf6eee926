"""Broken safetensors files: each is refused with what is wrong and where, and none costs more than its own size."""

import gc
import io
import json
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refquant.checkpoints.header_json import MAX_INTEGER
from refquant.checkpoints.safetensors_header import MAX_HEADER, read_header
from refquant.errors import CheckpointError
from tests.checkpoints.corpus import BROKEN, DATA, GOOD, one
from tests.checkpoints.files import WIDTHS, entry, opened, safetensors_bytes


def test_the_file_that_the_corpus_breaks_is_good(tmp_path):
    assert list(opened(tmp_path, safetensors_bytes(GOOD, DATA))) == ["a", "b"]
    assert list(opened(tmp_path, one())) == ["a"]


@pytest.mark.parametrize("case", BROKEN)
def test_it_is_refused_with_the_place_and_the_reason(case, tmp_path):
    content, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        opened(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'x.safetensors'}: ")
    assert len(str(error.value)) < len(str(tmp_path)) + 400
    assert str(error.value).isprintable()


def test_every_truncation_is_refused(tmp_path):
    content = safetensors_bytes(GOOD, DATA)
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            opened(tmp_path, content[:length])


# Mutations: whatever is done to a valid file, it is read or refused, and what is read can be looked at.

VALID = [
    safetensors_bytes(GOOD, DATA),
    safetensors_bytes(
        {
            "__metadata__": {"format": "pt", "é": "\U0001f600"},
            "w": entry("BF16", [2, 3], 0),
            "none": entry("F8_E4M3", [0, 4], 12),
            "flag": entry("BOOL", [2], 12),
            "scalar": entry("F64", [], 14),
        },
        bytes(range(12)) + b"\0\1" + bytes(8),
    ),
    safetensors_bytes("{}  "),
]
MARKS = [*'"{}[],:-09 \\é\0', "1e9", "NaN", "null", "true", "\\u", "\\ud800", "\U0001f600", "18446744073709551616"]
WORDS = ['"a":', '"dtype":', '"shape":', '"data_offsets":', '"__metadata__":', '"F32"', "[0,0]"]
VALUES = [*range(17), 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64]


@st.composite
def mutated(draw) -> bytes:
    """A valid file with its header's numbers changed, its text edited, or its bytes damaged anywhere."""
    content = draw(st.sampled_from(VALID))
    end = 8 + int.from_bytes(content[:8], "little")
    header, data = bytearray(content[8:end]), bytearray(content[end:])
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["number", "number", "dtype", "token", "edit", "edit data"])):
            case "number":
                replace_one(draw, header, rb"\d+", st.sampled_from(VALUES).map(str))
            case "dtype":
                replace_one(draw, header, rb'"[A-Z][A-Z0-9_]+"', st.sampled_from(list(WIDTHS)).map(json.dumps))
            case "token":
                place = draw(st.integers(0, len(header)))
                header[place:place] = draw(st.sampled_from(MARKS + WORDS)).encode()
            case "edit":
                edit(draw, header)
            case "edit data":
                edit(draw, data)
    if draw(st.integers(0, 3)):
        return safetensors_bytes(bytes(header), bytes(data))
    whole = bytearray(safetensors_bytes(bytes(header), bytes(data), draw(st.none() | st.integers(0, 2**64 - 1))))
    edit(draw, whole)
    return bytes(whole)


def replace_one(draw, text: bytearray, pattern: bytes, replacement: st.SearchStrategy[str]) -> None:
    places = [match.span() for match in re.finditer(pattern, text)]
    if places:
        begin, end = draw(st.sampled_from(places))
        text[begin:end] = draw(replacement).encode()


def edit(draw, content: bytearray) -> None:
    """Flip a bit, change, insert, delete or copy bytes, or cut the rest off."""
    place = draw(st.integers(0, len(content)))
    match draw(st.sampled_from(["flip", "byte", "insert", "delete", "copy", "truncate"])):
        case "flip" if place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        case "byte" if place < len(content):
            content[place] = draw(st.integers(0, 255))
        case "insert":
            content[place:place] = draw(st.binary(max_size=9))
        case "delete":
            del content[place : place + draw(st.integers(1, 9))]
        case "copy":
            start = draw(st.integers(0, len(content)))
            content[place:place] = content[start : start + draw(st.integers(1, 40))]
        case "truncate":
            del content[place:]


@settings(max_examples=300)
@given(content=mutated())
def test_a_mutated_file_is_read_or_refused_and_never_anything_else(content, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    try:
        checkpoint = opened(folder, content)
    except CheckpointError as refusal:
        message = str(refusal)
    else:
        message = ""
        assert sum(t.nbytes for t in checkpoint.values()) < len(content)
        for tensor in checkpoint.values():
            if tensor.dtype != "BOOL":
                assert tensor.numpy().nbytes == tensor.nbytes
    assert message.isprintable()


# Memory: a constant, and a small multiple of the file for Python's objects. A claim in the file buys nothing.


def peak_of(content: bytes) -> int:
    """Most memory taken while the header is read."""
    gc.collect()
    tracemalloc.start()
    try:
        read_header(io.BytesIO(content), Path("x"), len(content))
    except CheckpointError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_reading_a_long_header_takes_a_small_multiple_of_it():
    header = {f"model.layers.{i}.mlp.weight": entry("F32", [1], 4 * i) for i in range(3000)}
    content = safetensors_bytes(header, bytes(12000))
    assert peak_of(content) < 24 * len(content)


HUNGRY = {
    "long lists": '{"a":{"shape":[' + "0," * 100_000,
    "empty lists": '{"a":{"shape":[' + "[]," * 100_000,
    "empty objects": '{"a":{"shape":{' + '"":{},' * 100_000,
    "empty tensors": "{" + ",".join(f'"{i}":{{}}' for i in range(100_000)) + "}",
    "nesting": '{"a":' + "[" * 300_000,
    "metadata keys": '{"__metadata__":{' + ",".join(f'"{i}":""' for i in range(30_000)) + "}}",
    "small tensors": "{"
    + ",".join(f'"{i}":{{"dtype":"U8","shape":[],"data_offsets":[{i},{i + 1}]}}' for i in range(5_000))
    + "}",
    "one long string": '{"' + "a" * 300_000 + '":{}}',
    "one wide string": '{"' + "\U0001f600" * 75_000 + '":{}}',
    "escapes": '{"' + "\\u0061" * 50_000 + '":{}}',
    "spaces": "{" + " " * 300_000,
    "digits": '{"a":{"shape":[' + "9" * 300_000,
}


@pytest.mark.parametrize("case", HUNGRY)
def test_a_hungry_header_takes_no_more_than_its_size_justifies(case):
    content = safetensors_bytes(HUNGRY[case])
    assert peak_of(content) < 24 * len(content) + 100_000


@pytest.mark.parametrize("claim", [2**20, MAX_HEADER, 2**40, MAX_INTEGER, 2**64 - 1])
def test_what_a_small_file_claims_is_not_allocated(claim):
    for content in [
        safetensors_bytes(GOOD, DATA, claim),
        one(shape=[claim]),
        one(data_offsets=[0, claim]),
        one(shape=[claim, 2**62, 2**62]),
    ]:
        assert peak_of(content) < 50_000
