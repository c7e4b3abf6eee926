"""Broken GGUF files: each is refused with what is wrong and where, and none costs more than its own size."""

import re
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refquant.checkpoints.gguf_header import read_header
from refquant.errors import CheckpointError
from tests.checkpoints.gguf_corpus import BROKEN, DATA, GOOD, LOADED, PAIRS, TWO, array, one, pair, text
from tests.checkpoints.gguf_files import BIG, F64, LITTLE, STR, U8, U16, U32, V1, File, opened
from tests.checkpoints.test_broken_safetensors import edit


def test_the_file_that_the_corpus_breaks_is_good(tmp_path):
    assert list(opened(tmp_path, GOOD)) == ["t", "u"]
    assert list(opened(tmp_path, one("t", [8]))) == ["t"]
    assert opened(tmp_path, pair(text(3))).metadata["k"] == "abc"
    assert len(opened(tmp_path, pair(array(U8, 64))).metadata["k"]) == 64


@pytest.mark.parametrize("case", BROKEN)
def test_it_is_refused_with_the_place_and_the_reason(case, tmp_path):
    content, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        opened(tmp_path, content)
    assert re.match(re.escape(f"{tmp_path / 'x.gguf'}: byte ") + r"\d+: ", str(error.value))
    assert len(str(error.value)) < len(str(tmp_path)) + 400
    assert str(error.value).isprintable()


@pytest.mark.parametrize("case", LOADED)
def test_what_llama_cpp_loads_is_read(case, tmp_path):
    look_at_everything(opened(tmp_path, LOADED[case]))


# Truncation and mutation: whatever is done to a valid file, it is read or refused, and what is read can be looked at.

BIG_ENDIAN = File(
    [BIG.pair("k", U32, 7), BIG.array("a", STR, ["x", "yz"]), BIG.array("n", F64, [1.5, -2])],
    [BIG.tensor("t", [8]), BIG.tensor("b", [32, 2], "Q8_0", 32), BIG.tensor("h", [3], "BF16", 128)],
    bytes(range(134)),
    w=BIG,
).bytes()
VERSION_1 = File(
    [V1.pair("k", U16, 7), V1.array("a", STR, ["x", "yz"])],
    [V1.tensor("t", [32], "Q4_0"), V1.tensor("u", [2, 1, 3], "F16", 32)],
    bytes(44),
    version=1,
    w=V1,
).bytes()
VALID = [GOOD, BIG_ENDIAN, VERSION_1, LOADED["KV_SUCCESS"], LOADED["DATA_CUSTOM_ALIGN"], LOADED["HEADER_EMPTY"]]
NUMBERS = [*range(17), 31, 32, 33, 64, 255, 2**16, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("content", VALID, ids=["good", "big", "v1", "values", "aligned", "empty"])
def test_every_truncation_is_refused_until_all_data_is_there(content, tmp_path):
    least = read_header(content, tmp_path).data_end if opened(tmp_path, content) else len(content)
    for length in range(least):
        with pytest.raises(CheckpointError):
            read_header(content[:length], tmp_path)
    for length in range(least, len(content) + 1):
        read_header(content[:length], tmp_path)


@st.composite
def mutated(draw) -> bytes:
    """A valid file with its integers changed, pieces of another inserted, or its bytes damaged anywhere."""
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.sampled_from(["u32", "u64", "u64", "splice", "edit"])):
            case "splice":
                other = draw(st.sampled_from(VALID))
                start = draw(st.integers(0, len(other)))
                place = draw(st.integers(0, len(content)))
                content[place:place] = other[start : start + draw(st.integers(1, 60))]
            case "edit":
                edit(draw, content)
            case code:
                code = code.removeprefix("u")
                order = draw(st.sampled_from("<<>"))
                place = draw(st.integers(0, max(len(content) - 8, 0)))
                number = draw(st.sampled_from(NUMBERS)) % 2 ** int(code)
                content[place : place + int(code) // 8] = struct.pack(order + ("I" if code == "32" else "Q"), number)
    return bytes(content)


def look_at_everything(checkpoint) -> None:
    """Every value and every tensor, as somebody who opened the file might."""
    for key, value in checkpoint.typed_metadata.items():
        assert key
        if value.is_array:
            assert len(list(value.value)) == len(value.value)
    for tensor in checkpoint.tensors.values():
        assert tensor.raw().nbytes == tensor.nbytes
        tensor.numpy()


@settings(max_examples=300)
@given(content=mutated())
def test_a_mutated_file_is_read_or_refused_and_never_anything_else(content, tmp_path_factory):
    try:
        checkpoint = opened(tmp_path_factory.getbasetemp(), content)
        assert sum(t.nbytes for t in checkpoint.values()) < len(content)
        look_at_everything(checkpoint)
    except CheckpointError as refusal:
        message = str(refusal)
    else:
        message = ""
    assert message.isprintable()


# Memory: a constant, and a small multiple of the file for Python's objects. A claim in the file buys nothing.


def peak_of(content: bytes) -> int:
    """Most memory taken while the header is read."""
    tracemalloc.start()
    try:
        read_header(content, Path("x"))
    except CheckpointError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


w = LITTLE
HUNGRY = {
    "a long string": pair(w.pair("k", STR, "a" * 300_000)),
    "a long array": pair(w.array("k", U8, bytes(300_000))),
    "a long array of booleans": pair(w.array("k", 7, b"\1" * 300_000)),
    "empty strings": pair(w.array("k", STR, [""] * 10_000)),
    "empty arrays": pair(*(w.array(f"{i}", U8, []) for i in range(4_000))),
    "small pairs": pair(*(w.pair(f"{i}", U8, 0) for i in range(6_000))),
    "small tensors": File(
        [w.pair("general.alignment", U32, 1)],
        [w.tensor(f"{i}", [1], "I8", i) for i in range(4_000)],
        bytes(4_000),
        alignment=1,
    ).bytes(),
    "small tensors without data": File(tensors=[w.tensor(f"{i}", [8], "F32", 32 * i) for i in range(4_000)]).bytes(),
    "long keys": pair(*(w.pair(f"{i:060000d}", U8, 0) for i in range(5))),
}


@pytest.mark.parametrize("case", HUNGRY)
def test_a_hungry_header_takes_no_more_than_its_size_justifies(case):
    assert peak_of(HUNGRY[case]) < 24 * len(HUNGRY[case]) + 100_000


@pytest.mark.parametrize("case", ["a long string", "a long array", "a long array of booleans"])
def test_what_is_not_asked_for_is_not_copied(case):
    assert peak_of(HUNGRY[case]) < 20_000


@pytest.mark.parametrize("claim", [2**20, 2**31, 2**40, 2**63 - 1, 2**64 - 1])
def test_what_a_small_file_claims_is_not_allocated(claim):
    for content in [
        File(PAIRS, TWO, DATA, tensor_count=claim).bytes(),
        File(PAIRS, TWO, DATA, pair_count=claim).bytes(),
        pair(struct.pack("<Q", claim) + b"k" + bytes(9)),
        pair(text(claim)),
        pair(array(U8, claim)),
        pair(array(STR, claim)),
        pair(array(STR, 1, struct.pack("<Q", claim))),
        one("t", [claim]),
        one("t", [claim, claim, claim, claim], "I8"),
        one("t", [8], "F32", claim),
    ]:
        assert peak_of(content) < 50_000
