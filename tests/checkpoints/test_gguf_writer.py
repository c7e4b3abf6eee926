"""What is written is what was asked for, byte for byte, and whole or not at all."""

import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.checkpoints.ggml_types import BY_NAME
from refquant.checkpoints.gguf_split import open_gguf
from refquant.checkpoints.gguf_values import (
    Value,
    ValueType,
    boolean,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    numbers,
    string,
    strings,
    u8,
    u16,
    u32,
    u64,
)  # fmt: skip
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.errors import RefquantError
from tests.checkpoints.gguf_files import (
    BIG,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    LITTLE,
    STR,
    U8,
    U16,
    U32,
    U64,
    V1,
    File,
    opened,
)  # fmt: skip

w = LITTLE


def source(name="t", shape=(2,), dtype="F32", data=None):
    nbytes = math.prod(shape) // BY_NAME[dtype].block_size * BY_NAME[dtype].block_bytes if dtype in BY_NAME else 0
    return TensorSource(name, dtype, shape, lambda: np.arange(nbytes, dtype=np.uint8) if data is None else data)


def written(folder, metadata, tensors=()):
    write_gguf(folder / "w.gguf", metadata, tensors)
    return (folder / "w.gguf").read_bytes()


def refused(folder, metadata, tensors, message):
    with pytest.raises(RefquantError, match=re.escape(message)) as error:
        write_gguf(folder / "w.gguf", metadata, tensors)
    assert str(error.value).isprintable()
    assert not list(folder.iterdir())


class TestBytes:
    def test_every_type_of_value(self, tmp_path):
        metadata = {
            "z": u8(255), "y": i8(-128), "a": u16(65535), "b": i16(-1), "c": u32(2**32 - 1), "d": i32(-(2**31)),
            "e": f32(0.1), "f": boolean(True), "g": string("é\0"), "h": u64(2**64 - 1), "i": i64(-(2**63)),
            "j": f64(-0.0), "k": strings(["", "é", "\udcff"]), "l": strings([]), "m": numbers(ValueType.U8, [0, 255]),
            "n": numbers(ValueType.F32, [0.1, math.nan, math.inf]), "o": numbers(ValueType.BOOL, [True, False]),
            "p": numbers(ValueType.I64, []), "q": numbers(ValueType.F64, np.array([1, 2], ">i4")),
        }  # fmt: skip
        expected = [
            w.pair("z", U8, 255), w.pair("y", I8, -128), w.pair("a", U16, 65535), w.pair("b", I16, -1),
            w.pair("c", U32, 2**32 - 1), w.pair("d", I32, -(2**31)), w.pair("e", F32, 0.1), w.pair("f", BOOL, 1),
            w.pair("g", STR, "é\0"), w.pair("h", U64, 2**64 - 1), w.pair("i", I64, -(2**63)), w.pair("j", F64, -0.0),
            w.array("k", STR, ["", "é", b"\xff"]), w.array("l", STR, []), w.array("m", U8, [0, 255]),
            w.array("n", F32, [0.1, math.nan, math.inf]), w.array("o", BOOL, [1, 0]), w.array("p", I64, []),
            w.array("q", F64, [1, 2]),
        ]  # fmt: skip
        content = File(expected).bytes()
        assert written(tmp_path, metadata) == content + bytes(-len(content) % 32)

    @pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
    def test_tensors_follow_one_another_at_the_alignment(self, tmp_path, alignment):
        tensors = [source("a", (1, 3)), source("b", (2, 64), "Q8_0"), source("c", (5,), "I8")]
        offsets = [0, -(-12 // alignment) * alignment]
        offsets.append(offsets[1] + -(-136 // alignment) * alignment)
        infos = [
            w.tensor("a", [3, 1], "F32", 0),
            w.tensor("b", [64, 2], "Q8_0", offsets[1]),
            w.tensor("c", [5], "I8", offsets[2]),
        ]
        data = b"".join(bytes(range(n)) + bytes(-n % alignment) for n in (12, 136, 5))
        pairs = [w.pair("general.alignment", U32, alignment)]
        content = written(tmp_path, {"general.alignment": u32(alignment)}, tensors)
        assert content == File(pairs, infos, data, alignment=alignment).bytes()

    def test_elements_are_written_little_endian_whatever_they_come_in(self, tmp_path):
        plain = np.arange(100, 112, dtype=np.float32).reshape(3, 4)
        for data in (
            plain,
            plain.astype(">f4"),
            np.asfortranarray(plain),
            np.tile(plain, (1, 2))[:, :4],
            plain.view("u1"),
        ):
            assert written(tmp_path, {}, [source("t", (3, 4), "F32", data)])[-64:-16] == plain.tobytes()
        codes = np.arange(8, dtype=">u2")
        assert written(tmp_path, {}, [source("t", (8,), "BF16", codes)])[-32:-16] == codes.astype("<u2").tobytes()

    def test_progress_hears_of_every_byte(self, tmp_path):
        heard = []
        write_gguf(tmp_path / "w.gguf", {}, [source("a"), source("b", (3,))], heard.append)
        assert heard == [8, 12]


class TestAgain:
    """Reading a file and writing it again."""

    CANONICAL = File(
        [w.pair("general.alignment", U32, 64), w.pair("b", BOOL, 1), w.array("s", STR, [b"\xff", "x"]),
         w.pair("n", F32, math.nan)],
        [w.tensor("t", [32, 1], "Q4_0"), w.tensor("u", [3], "BF16", 64)],
        bytes(range(18)) + bytes(46) + bytes(6) + bytes(58),
        alignment=64,
    ).bytes()  # fmt: skip

    def again(self, tmp_path, content):
        checkpoint = opened(tmp_path, content)
        return written(tmp_path, checkpoint.typed_metadata, [t.source() for t in checkpoint.tensors.values()])

    def test_a_canonical_file_is_the_same_to_the_byte(self, tmp_path):
        assert self.again(tmp_path, self.CANONICAL) == self.CANONICAL

    @pytest.mark.parametrize(
        "content",
        [
            CANONICAL + b"more",
            CANONICAL[:-58],
            CANONICAL.replace(b"GGUF\3", b"GGUF\2"),
            CANONICAL[:-1] + b"\1",
            CANONICAL.replace(w.pair("b", BOOL, 1), w.pair("b", BOOL, 255)),
        ],
        ids=["bytes after the data", "no last padding", "version 2", "padding that is not zero", "a true of 255"],
    )
    def test_any_other_file_becomes_the_canonical_one(self, tmp_path, content):
        assert content != self.CANONICAL
        assert self.again(tmp_path, content) == self.CANONICAL

    def test_big_endian_and_version_1_become_canonical(self, tmp_path):
        little = File(
            [w.pair("k", U32, 7), w.array("a", F64, [1.5])], [w.tensor("t", [4], "F16")], bytes([1, 2] * 4) + bytes(24)
        )
        big = File(
            [BIG.pair("k", U32, 7), BIG.array("a", F64, [1.5])], [BIG.tensor("t", [4], "F16")], bytes([2, 1] * 4), w=BIG
        )
        old = File(
            [V1.pair("k", U32, 7), V1.array("a", F64, [1.5])], [V1.tensor("t", [4], "F16")], bytes([1, 2] * 4), 1, w=V1
        )
        assert self.again(tmp_path, big.bytes()) == self.again(tmp_path, old.bytes()) == little.bytes()

    @given(
        pairs=st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20),
            st.one_of(
                st.integers(0, 2**64 - 1).map(u64),
                st.integers(-(2**31), 2**31 - 1).map(i32),
                st.floats(width=32, allow_nan=False).map(f32),
                st.booleans().map(boolean),
                st.text(st.characters(exclude_categories=["Cs"])).map(string),
                st.lists(st.binary(max_size=9).map(lambda raw: raw.decode("utf-8", "surrogateescape"))).map(strings),
                st.lists(st.integers(0, 2**32 - 1)).map(
                    lambda n: numbers(ValueType.F32, np.array(n, "<u4").view("<f4"))
                ),
            ),
            max_size=8,
        ),
        shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple), max_size=5),
    )
    def test_whatever_is_written_is_read_and_written_again(self, pairs, shapes, tmp_path_factory):
        folder = tmp_path_factory.mktemp("again")
        pairs.pop("general.alignment", None)
        pairs.pop("split.count", None)
        tensors = [source(f"t{i}", shape) for i, shape in enumerate(shapes)]
        content = written(folder, pairs, tensors)
        checkpoint = open_gguf(folder / "w.gguf")
        assert [(k, v.type_name) for k, v in checkpoint.typed_metadata.items()] == [
            (k, v.type_name) for k, v in pairs.items()
        ]
        assert [t.shape for t in checkpoint.values()] == shapes
        assert self.again(folder, content) == content


class TestRefused:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("", u8(1), "key '' is 0 bytes long in UTF-8; 1 to 65535 are allowed"),
            ("k" * 65536, u8(1), "is 65536 bytes long in UTF-8; 1 to 65535"),
            ("a\0b", u8(1), "key 'a\\x00b' has a NUL in it"),
            ("\ud800", u8(1), "key '\\ud800' is not text"),
            ("k", u8(256), "metadata 'k' of type u8: 256 given, which it does not hold"),
            ("k", u8(-1), "-1 given"),
            ("k", i64(2**63), "9223372036854775808 given"),
            ("k", u32(1.0), "1.0 given, which it does not hold"),
            ("k", u32(True), "metadata 'k' of type u32: True given"),
            ("k", u32("1"), "'1' given"),
            ("k", boolean(1), "metadata 'k' of type bool: 1 given"),
            ("k", f32(1e39), "1e+39 given"),
            ("k", f32(None), "None given"),
            ("k", string(b"x"), "metadata 'k' of type str: bytes given; a string is needed"),
            ("k", string("\ud800"), "half of a surrogate pair that stands for no byte"),
            ("k", Value(ValueType.ARR, 1), "an array of arrays"),
            ("k", Value(ValueType.ARR, [[1]], is_array=True), "an array of arrays"),
            ("k", strings("abc"), "metadata 'k' of type [str]: str given; an array is a sequence"),
            ("k", strings(["a", 1]), "int given; a string is needed"),
            ("k", numbers(ValueType.U8, [1, 256]), "metadata 'k' of type [u8]: 256 at index 1, which it does not hold"),
            ("k", numbers(ValueType.U8, [[1]]), "an array of 2 axes given"),
            ("k", numbers(ValueType.I32, [1.5]), "an array of float64 given"),
            ("k", numbers(ValueType.BOOL, [1]), "an array of int64 given"),
            ("k", numbers(ValueType.F32, [1e39]), "1e+39 at index 0"),
            ("k", Value(ValueType.U64, np.array([-1]), is_array=True), "-1 at index 0"),
            ("general.alignment", u64(32), "metadata 'general.alignment' of type u64 given; it must be u32"),
            ("general.alignment", u32(24), "metadata 'general.alignment': 24 given; it must be a power of two"),
        ],
    )  # fmt: skip
    def test_metadata(self, tmp_path, key, value, message):
        refused(tmp_path, {key: value}, [source()], message)

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ([source("t"), source("t")], "tensor 't' given twice"),
            ([source("")], "tensor '' is 0 bytes long in UTF-8; 1 to 63 are allowed"),
            ([source("é" * 32)], "is 64 bytes long in UTF-8"),
            ([source("t\0")], "has a NUL in it"),
            ([source(dtype="Q4_L")], "unknown type of tensor 't' 'Q4_L'; did you mean"),
            ([source(shape=())], "tensor 't': shape () given; a GGUF tensor has 1 to 4 dimensions of at least 1"),
            ([source(shape=(1, 1, 1, 1, 1))], "shape (1, 1, 1, 1, 1) given"),
            ([source(shape=(2, 0))], "shape (2, 0) given"),
            ([source(shape=(32, 48), dtype="Q8_0")], "shape (32, 48) given; Q8_0 stores rows in blocks of 32"),
            ([TensorSource("t", "F32", (2**32, 2**32), lambda: None)], "are limited to 9223372036854775807"),
            ([source(data=np.zeros(3, np.float32))], "data of float32, 12 bytes, given; F32 of shape (2,) is 8 bytes"),
            ([source(data=np.zeros(1, np.float64))], "data of float64, 8 bytes, given; F32 of shape (2,) is 8 bytes"),
            ([source("a"), source("b", data=np.zeros(2, np.int32))], "tensor 'b': data of int32"),
        ],
    )  # fmt: skip
    def test_tensors(self, tmp_path, tensors, message):
        refused(tmp_path, {}, tensors, message)


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    size = 1 << 20
    tensors = [TensorSource(f"{i}", "F32", (size,), lambda: np.zeros(size, np.float32)) for i in range(8)]
    tracemalloc.start()
    write_gguf(tmp_path / "w.gguf", {}, tensors)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * 4 * size
    assert (tmp_path / "w.gguf").stat().st_size > 8 * 4 * size
