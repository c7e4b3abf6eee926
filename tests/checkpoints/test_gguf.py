"""What is read of a GGUF file: metadata of every type, tensors of every type, both byte orders, all versions."""

import math
import struct

import numpy as np
import pytest

import refquant as rq
from refquant.checkpoints.ggml_types import BY_NAME, REMOVED, TENSOR_TYPES
from refquant.checkpoints.gguf_values import NUMBERS, ValueType
from refquant.conformance.bits import assert_same_bits
from refquant.formats.ggml import GgmlFormat
from tests.checkpoints.gguf_files import (
    BIG,
    BOOL,
    CODES,
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

EDGES = {
    U8: [0, 255], I8: [-128, 127], U16: [0, 65535], I16: [-32768, 32767], U32: [0, 2**32 - 1],
    I32: [-(2**31), 2**31 - 1], U64: [0, 2**64 - 1], I64: [-(2**63), 2**63 - 1], BOOL: [0, 1],
    F32: [-0.0, math.inf, 2.0**-149], F64: [-0.0, -math.inf, 5e-324],
}  # fmt: skip
WRITINGS = {"little": (LITTLE, 3), "big": (BIG, 3), "version 2": (LITTLE, 2), "version 1": (V1, 1)}


@pytest.fixture(params=WRITINGS)
def writing(request):
    return WRITINGS[request.param]


class TestMetadata:
    @pytest.mark.parametrize("kind", CODES)
    def test_numbers_are_pythons_and_exact(self, tmp_path, writing, kind):
        w, version = writing
        pairs = [w.pair(f"{i}", kind, value) for i, value in enumerate(EDGES[kind])]
        metadata = opened(tmp_path, File(pairs, version=version, w=w).bytes()).metadata
        assert list(map(repr, metadata.values())) == [repr(bool(v) if kind == BOOL else v) for v in EDGES[kind]]
        assert all(metadata.typed(key).type == kind and not metadata.typed(key).is_array for key in metadata)

    @pytest.mark.parametrize("kind", CODES)
    def test_arrays_of_numbers_are_read_only_views_of_their_type(self, tmp_path, writing, kind):
        w, version = writing
        pairs = [w.array("a", kind, EDGES[kind]), w.array("none", kind, [])]
        metadata = opened(tmp_path, File(pairs, version=version, w=w).bytes()).metadata
        array = metadata["a"]
        assert array.dtype.newbyteorder("=") == NUMBERS[ValueType(kind)].newbyteorder("=")
        assert_same_bits(
            array.astype(array.dtype.newbyteorder("=")), np.array(EDGES[kind], array.dtype.newbyteorder("="))
        )
        assert not array.flags.writeable
        assert not array.flags.owndata
        assert metadata["none"].shape == (0,)
        assert metadata.typed("a").type_name == f"[{ValueType(kind).name.lower()}]"

    def test_strings_are_decoded_when_asked_for_and_lose_nothing(self, tmp_path, writing):
        w, version = writing
        stored = [b"", b"abc", "é€😀".encode(), b"\xff\xc3", b"a\0b"]
        pairs = [w.array("a", STR, stored), *(w.pair(f"{i}", STR, raw) for i, raw in enumerate(stored))]
        metadata = opened(tmp_path, File(pairs, version=version, w=w).bytes()).metadata
        texts = metadata["a"]
        assert [text.encode("utf-8", "surrogateescape") for text in texts] == stored
        assert [metadata[f"{i}"] for i in range(5)] == list(texts)
        assert (texts[1], texts[-1], list(texts[1:3]), len(texts)) == ("abc", "a\0b", ["abc", "é€😀"], 5)
        assert "abc" in texts
        with pytest.raises(IndexError):
            texts[5]

    def test_any_byte_but_zero_is_true(self, tmp_path):
        content = File([LITTLE.pair("k", BOOL, 255), LITTLE.array("a", BOOL, [0, 1, 2, 255])]).bytes()
        metadata = opened(tmp_path, content).metadata
        assert metadata["k"] is True
        assert metadata["a"].dtype == bool
        assert metadata["a"].view(np.uint8).tolist() == [0, 1, 1, 1]

    def test_the_order_of_the_file_is_kept_and_a_missing_key_is_a_key_error(self, tmp_path):
        metadata = opened(tmp_path, File([LITTLE.pair(key, U8, 1) for key in "cab"]).bytes()).metadata
        assert list(metadata) == ["c", "a", "b"]
        assert "d" not in metadata
        with pytest.raises(KeyError):
            metadata["d"]


class TestTensors:
    def test_shapes_are_in_c_order(self, tmp_path, writing):
        w, version = writing
        content = File(tensors=[w.tensor("t", [2, 3, 1, 4], "I8")], data=bytes(range(24)), version=version, w=w).bytes()
        tensor = opened(tmp_path, content)["t"]
        assert (tensor.shape, tensor.dtype, tensor.size, tensor.nbytes) == ((4, 1, 3, 2), "I8", 24, 24)
        assert_same_bits(tensor.numpy(), np.arange(24, dtype=np.int8).reshape(4, 1, 3, 2))

    @pytest.mark.parametrize(
        ("name", "code"), [("F32", "f4"), ("F16", "f2"), ("BF16", "u2"), ("F64", "f8"), ("I32", "i4")]
    )
    def test_elements_are_native_whatever_the_order_of_the_file(self, tmp_path, writing, name, code):
        w, version = writing
        expected = np.arange(100, 106).astype(code)
        data = expected.astype(expected.dtype.newbyteorder(w.order)).tobytes()
        content = File(tensors=[w.tensor("t", [3, 2], name)], data=data, version=version, w=w).bytes()
        tensor = opened(tmp_path, content)["t"]
        assert_same_bits(tensor.numpy(), expected.reshape(2, 3))
        assert tensor.numpy().dtype.isnative
        assert tensor.raw().tobytes() == expected.astype(f"<{code}").tobytes()
        if name == "I32":
            with pytest.raises(rq.RefquantError, match="'t' is I32: integers mean nothing as weights"):
                tensor.dequantize()
        elif name == "BF16":
            assert_same_bits(tensor.dequantize(), (expected.astype("u4") << 16).view(np.float32).reshape(2, 3))
        else:
            assert_same_bits(tensor.dequantize(), expected.astype(np.float32).reshape(2, 3))

    def test_float32_of_a_little_endian_file_is_a_view_of_it(self, tmp_path):
        tensor = opened(tmp_path, File(tensors=[LITTLE.tensor("t", [8])], data=bytes(32)).bytes())["t"]
        for array in (tensor.numpy(), tensor.dequantize(), tensor.raw()):
            assert not array.flags.writeable
            assert not array.flags.owndata

    @pytest.mark.parametrize("name", [kind.name for kind in TENSOR_TYPES.values() if kind.block_size > 1])
    def test_blocks_come_as_rows_of_bytes(self, tmp_path, name):
        kind = BY_NAME[name]
        data = np.random.default_rng(0).bytes(2 * 3 * kind.block_bytes)
        content = File(tensors=[LITTLE.tensor("t", [3 * kind.block_size, 2], kind.type_id)], data=data).bytes()
        tensor = opened(tmp_path, content)["t"]
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == (name, (2, 3 * kind.block_size), len(data))
        assert tensor.numpy().shape == (2, 3 * kind.block_bytes)
        assert tensor.numpy().tobytes() == tensor.raw().tobytes() == data

    def test_a_type_without_a_format_says_so(self, tmp_path):
        tensor = opened(tmp_path, File(tensors=[LITTLE.tensor("t", [8])], data=bytes(32)).bytes())["t"]
        with pytest.raises(rq.RefquantError, match="'t' is F32, which is no quantized format"):
            tensor.quantized()


class TestBigEndianBlocks:
    def test_the_halves_are_those_of_gguf_pys_tool(self):
        assert {kind.name: kind.halves for kind in TENSOR_TYPES.values() if kind.halves is not None} == {
            "Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,), "MXFP4": (), "NVFP4": ()
        }  # fmt: skip

    @pytest.mark.parametrize("name", [kind.name for kind in TENSOR_TYPES.values() if kind.halves is not None])
    def test_halves_are_swapped_and_nothing_else(self, tmp_path, name):
        kind = BY_NAME[name]
        little = np.random.default_rng(0).integers(0, 256, (4, kind.block_bytes), np.uint8)
        big = little.copy()
        for at in kind.halves:
            big[:, at : at + 2] = big[:, at : at + 2][:, ::-1]
        content = File(tensors=[BIG.tensor("t", [2 * kind.block_size, 2], kind.type_id)], data=big.tobytes(), w=BIG)
        tensor = opened(tmp_path, content.bytes())["t"]
        assert tensor.numpy().tobytes() == little.tobytes()
        assert tensor.raw().tobytes() == little.tobytes()

    @pytest.mark.parametrize("name", [k.name for k in TENSOR_TYPES.values() if k.halves is None and k.block_size > 1])
    def test_other_blocks_are_listed_and_refused_when_they_are_read(self, tmp_path, name):
        kind = BY_NAME[name]
        content = File(
            tensors=[BIG.tensor("t", [kind.block_size], kind.type_id)], data=bytes(kind.block_bytes), w=BIG
        ).bytes()
        tensor = opened(tmp_path, content)["t"]
        for read in (tensor.numpy, tensor.raw, tensor.dequantize):
            with pytest.raises(rq.RefquantError, match=f"'t' is (big-endian )?{name}"):
                read()


class TestTypes:
    def test_the_formats_agree_with_the_table_on_numbers_and_block_sizes(self):
        formats = {name.upper(): rq.get_format(name) for name in rq.formats()}
        ours = {name: fmt.type for name, fmt in formats.items() if isinstance(fmt, GgmlFormat)}
        assert set(ours) == set(BY_NAME) - {"F32", "F64", "I8", "I16", "I32", "I64"}
        for name, fmt in ours.items():
            kind = BY_NAME[name]
            assert (fmt.type_id, fmt.block_size, fmt.struct.itemsize) == (
                kind.type_id,
                kind.block_size,
                kind.block_bytes,
            )

    def test_numbers_are_known_or_removed_without_a_gap(self):
        assert sorted([*TENSOR_TYPES, *REMOVED]) == list(range(43))
        assert len(BY_NAME) == len(TENSOR_TYPES)

    def test_quantized_is_the_format_and_dequantizes_as_it_does(self, tmp_path):
        w = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
        q = rq.quantize(w, "q8_0")
        content = File(tensors=[LITTLE.tensor("t", [64, 3], "Q8_0")], data=q.parts["blocks"].tobytes()).bytes()
        tensor = opened(tmp_path, content)["t"]
        assert tensor.quantized().format == q.format
        assert not tensor.quantized().parts["blocks"].flags.owndata
        assert_same_bits(tensor.dequantize(), q.dequantize())

    @pytest.mark.parametrize("name", ["F16", "BF16"])
    def test_half_precision_is_a_format_too(self, tmp_path, name):
        codes = np.arange(1 << 16, dtype="<u2")
        content = File(tensors=[LITTLE.tensor("t", [256, 256], name)], data=codes.tobytes()).bytes()
        tensor = opened(tmp_path, content)["t"]
        decoded, exact = tensor.quantized().dequantize(), tensor.dequantize()
        finite = ~np.isnan(exact)
        assert (np.isnan(decoded) == ~finite).all()
        assert_same_bits(decoded[finite], exact[finite])

    def test_a_big_endian_scale_decodes_as_the_little_endian_one(self, tmp_path):
        q = rq.quantize(np.arange(32, dtype=np.float32), "q8_0")
        big = q.parts["blocks"].copy()
        big[[0, 1]] = big[[1, 0]]
        content = File(tensors=[BIG.tensor("t", [32], "Q8_0")], data=big.tobytes(), w=BIG).bytes()
        assert_same_bits(opened(tmp_path, content)["t"].dequantize(), q.dequantize())


def test_the_header_says_what_the_file_is(tmp_path, writing):
    w, version = writing
    content = File([w.pair("general.alignment", U32, 64)], [w.tensor("t", [1])], bytes(4), version, alignment=64, w=w)
    header = opened(tmp_path, content.bytes()).header
    assert (header.version, header.byte_order, header.alignment) == (version, "big" if w is BIG else "little", 64)
    assert (header.data_start % 64, header.data_end - header.data_start) == (0, 4)


def test_an_array_of_a_gigabyte_costs_nothing_to_open(tmp_path):
    head = File([LITTLE.array("k", U32, [], count=1 << 28)]).bytes()
    path = tmp_path / "big.gguf"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + (1 << 30))
    array = rq.open(path).metadata["k"]
    assert array.shape == (1 << 28,)
    assert array[-1] == 0


def test_values_may_begin_at_any_byte(tmp_path):
    for length in range(1, 10):
        metadata = opened(tmp_path, File([LITTLE.array("k" * length, F64, [1.5, -2.5])]).bytes()).metadata
        assert metadata["k" * length].tolist() == [1.5, -2.5]
        assert struct.unpack("<d", metadata["k" * length][1:].tobytes()) == (-2.5,)
