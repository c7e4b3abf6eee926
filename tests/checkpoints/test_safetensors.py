"""Reading valid safetensors files: every dtype to the bit, views instead of copies, nothing before it is asked for."""

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import refquant as rq
from refquant.checkpoints import CheckpointTensor, UnknownTensorError
from refquant.checkpoints.dtypes import DTYPES
from refquant.conformance.bits import assert_same_bits
from refquant.errors import CheckpointError, NonFiniteError, RefquantError, UnknownNameError
from refquant.floats import FLOATS
from tests.checkpoints.files import WIDTHS, entry, floats, opened, safetensors_bytes, write

NATIVE = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1",
          "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "?"}  # fmt: skip
CODES = {"BF16": "bf16", "F8_E4M3": "e4m3", "F8_E5M2": "e5m2", "F8_E4M3FNUZ": "e4m3fnuz", "F8_E5M2FNUZ": "e5m2fnuz",
         "F8_E8M0": "e8m0"}  # fmt: skip


def raw_bytes(dtype, count, seed=3):
    raw = np.random.default_rng(seed).integers(0, 2 if dtype == "BOOL" else 256, count * WIDTHS[dtype], np.uint8)
    return raw.tobytes()


def test_every_dtype_is_covered_here():
    assert set(NATIVE) | set(CODES) == set(DTYPES) == set(WIDTHS)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_numpy_gives_the_stored_bits(tmp_path, dtype):
    raw = raw_bytes(dtype, 6)
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": (dtype, [2, 3], raw)}))["t"]
    native = np.dtype(NATIVE.get(dtype) or f"u{WIDTHS[dtype]}")
    assert_same_bits(tensor.numpy(), np.frombuffer(raw, native).reshape(2, 3))
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.size, tensor.nbytes) == ("t", dtype, (2, 3), 6, len(raw))


@pytest.mark.parametrize("dtype", ["F16", *CODES])
def test_small_floats_widen_exactly_over_all_their_codes(tmp_path, dtype):
    codes = np.arange(1 << (8 * WIDTHS[dtype]), dtype=f"<u{WIDTHS[dtype]}")
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": (dtype, [len(codes)], codes.tobytes())}))["t"]
    assert_same_bits(tensor.dequantize(), FLOATS[CODES.get(dtype, "fp16")].decode(codes))


def test_f32_is_a_read_only_view_of_the_map(tmp_path):
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": floats(1.0, -0.0, np.inf, np.nan)}))["t"]
    first, second = tensor.dequantize(), tensor.dequantize()
    assert np.shares_memory(first, second)
    assert not first.flags.owndata
    assert not first.flags.writeable
    assert_same_bits(first, np.array([1.0, -0.0, np.inf, np.nan], np.float32))


def test_f64_is_rounded_once_to_even(tmp_path):
    tie = 1 + 2.0**-24
    values = np.array([tie, np.nextafter(tie, 2), 2.0**-149 * 1.5, -0.0, np.inf, -np.inf, np.nan], "<f8")
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": ("F64", [7], values.tobytes())}))["t"]
    expected = np.array([1, 1 + 2.0**-23, 2.0**-148, -0.0, np.inf, -np.inf, np.nan], np.float32)
    assert_same_bits(tensor.dequantize(), expected)


def test_f64_beyond_float32_is_an_error_with_its_index(tmp_path):
    values = np.array([[1, 2], [3, -1e39]], "<f8")
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": ("F64", [2, 2], values.tobytes())}))["t"]
    with pytest.raises(NonFiniteError, match=r"tensor 't': -1e\+39 at index \(1, 1\) is beyond float32"):
        tensor.dequantize()


@pytest.mark.parametrize("dtype", ["I8", "I64", "U8", "U32", "BOOL"])
def test_integers_are_not_weights_by_themselves(tmp_path, dtype):
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": (dtype, [2], raw_bytes(dtype, 2))}))["t"]
    with pytest.raises(RefquantError, match=rf"'t' is {dtype}: .*\.numpy\(\) gives them as stored"):
        tensor.dequantize()


def test_a_boolean_is_zero_or_one(tmp_path):
    path = write(tmp_path / "a.safetensors", {"t": ("BOOL", [3], bytes([0, 1, 2]))})
    with pytest.raises(CheckpointError, match=rf"byte {path.stat().st_size - 1} of the file is 2; a BOOL is 0 or 1"):
        rq.open(path)["t"].numpy()


@pytest.mark.parametrize("shape", [[], [0], [3, 0, 2], [1, 1, 1, 1, 1], [1] * 32])
def test_scalars_empty_and_deep_shapes(tmp_path, shape):
    count = int(np.prod(shape))
    tensor = rq.open(write(tmp_path / "a.safetensors", {"t": ("BF16", shape, bytes(2 * count))}))["t"]
    assert tensor.dequantize().shape == tensor.numpy().shape == tensor.shape == tuple(shape)


def test_data_that_is_not_aligned_reads_the_same(tmp_path):
    tensors = {"byte": ("U8", [1], b"\7"), "f": floats(1.5, -2.5), "d": ("F64", [1], struct.pack("<d", 0.1))}
    checkpoint = rq.open(write(tmp_path / "a.safetensors", tensors))
    assert checkpoint["f"].dequantize().tolist() == [1.5, -2.5]
    assert checkpoint["d"].numpy().tolist() == [0.1]


def test_tensors_may_be_listed_in_any_order_and_share_an_empty_place(tmp_path):
    header = {"b": entry("U8", [2], 1), "none": entry("F32", [0], 1), "a": entry("U8", [1], 0)}
    checkpoint = opened(tmp_path, safetensors_bytes(header, b"\1\2\3"))
    assert list(checkpoint) == ["b", "none", "a"]
    assert (checkpoint["a"].numpy().tolist(), checkpoint["b"].numpy().tolist()) == ([1], [2, 3])


def test_an_empty_header_is_an_empty_checkpoint(tmp_path):
    checkpoint = opened(tmp_path, safetensors_bytes("{} \n\t "))
    assert (len(checkpoint), checkpoint.nbytes, checkpoint.metadata) == (0, 0, {})
    with pytest.raises(UnknownTensorError, match="no tensor 'a'; it has no tensors"):
        checkpoint["a"]


def test_names_and_metadata_may_be_any_text(tmp_path):
    names = ["é\u4e16\U0001f600", 'quo"te\\', "tab\t", "a" * 5000, "__metadata", " "]
    path = write(tmp_path / "a.safetensors", {n: floats(i) for i, n in enumerate(names)}, metadata={"": "", "k": "v\n"})
    checkpoint = rq.open(path)
    assert list(checkpoint) == names
    assert [float(checkpoint[n].dequantize()[0]) for n in names] == list(range(6))
    assert checkpoint.metadata == {"": "", "k": "v\n"}


def test_what_the_library_writes_is_read_back(tmp_path):
    rng = np.random.default_rng(1)
    arrays = {
        "half": rng.standard_normal((3, 4)).astype(np.float16),
        "single": rng.standard_normal((5,)).astype(np.float32),
        "double": rng.standard_normal((2, 2, 2)),
        "flags": rng.integers(0, 2, 7).astype(bool),
        "ints": rng.integers(-9, 9, (2, 3)).astype(np.int16),
    }
    save_file(arrays, tmp_path / "a.safetensors", metadata={"format": "np"})
    checkpoint = rq.open(tmp_path / "a.safetensors")
    assert checkpoint.metadata == {"format": "np"}
    assert set(checkpoint) == set(arrays)
    for name, array in arrays.items():
        assert_same_bits(checkpoint[name].numpy(), array, name)


class TestMapping:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        return rq.open(write(tmp_path / "a.safetensors", {"layer.0.weight": floats(1.0), "norm": floats(2.0)}))

    def test_it_is_a_mapping(self, checkpoint):
        assert len(checkpoint) == 2
        assert dict(checkpoint.items()) == {name: checkpoint[name] for name in checkpoint}
        assert all(isinstance(t, CheckpointTensor) for t in checkpoint.values())
        assert "norm" in checkpoint
        assert "nor" not in checkpoint
        assert checkpoint.get("nor") is None

    def test_an_unknown_name_suggests_near_ones_and_is_a_key_error(self, checkpoint):
        with pytest.raises(
            UnknownNameError, match=r"no tensor 'layers\.0\.weight'; did you mean 'layer\.0\.weight'"
        ) as e:
            checkpoint["layers.0.weight"]
        assert isinstance(e.value, KeyError)
        with pytest.raises(KeyError, match=r"it has 2 tensors, such as 'layer\.0\.weight', 'norm'$"):
            checkpoint["zzz"]

    def test_arrays_outlive_the_checkpoint(self, checkpoint):
        array = checkpoint["norm"].dequantize()
        del checkpoint
        assert array.tolist() == [2.0]

    def test_repr_says_what_it_is(self, checkpoint):
        assert repr(checkpoint).endswith("a.safetensors': 2 tensors, 8 bytes>")
        assert "mmap" not in repr(checkpoint["norm"])


def test_a_big_file_is_opened_and_one_tensor_read_without_the_rest(tmp_path):
    big = 6 << 30
    header = {"huge": entry("U8", [big], 0), "small": entry("F32", [4], big)}
    path = tmp_path / "big.safetensors"
    with path.open("wb") as file:  # sparse: the holes take no disk
        file.write(safetensors_bytes(header))
        start = file.tell()
        file.truncate(start + big)
        file.seek(start + big)
        file.write(np.arange(4, dtype="<f4").tobytes())
    resident = resident_bytes()
    tracemalloc.start()
    checkpoint = rq.open(path)
    values = checkpoint["small"].dequantize()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert values.tolist() == [0, 1, 2, 3]
    assert checkpoint["huge"].numpy().shape == (big,)
    assert checkpoint["huge"].numpy()[big // 2] == 0
    assert peak < 1 << 20
    assert resident_bytes() - resident < 64 << 20  # the kernel reads around what is touched


def resident_bytes() -> int:
    """Memory of this process that is really there, mapped files included; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
