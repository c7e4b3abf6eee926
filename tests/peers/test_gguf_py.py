"""GGUF files against gguf-py: read what it writes, in both byte orders, and it reads what is written here."""

import signal
import subprocess
import sys
import warnings

import gguf
import numpy as np
import pytest
from gguf.scripts.gguf_convert_endian import byteswap_tensors

from refquant.checkpoints.ggml_types import TENSOR_TYPES
from refquant.checkpoints.gguf_split import open_gguf
from refquant.checkpoints.gguf_values import ValueType, boolean, f32, f64, i64, numbers, string, strings, u8, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.conformance.bits import assert_same_bits
from tests.checkpoints.gguf_corpus import BROKEN, LOADED
from tests.peers.smollm2 import gguf_path

pytestmark = pytest.mark.peers

ORDERS = {"little": gguf.GGUFEndian.LITTLE, "big": gguf.GGUFEndian.BIG}
SCALARS = {
    "uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 2**32 - 1, "int32": -(2**31),
    "float32": 0.5, "bool": True, "uint64": 2**64 - 1, "int64": -(2**63), "float64": 0.1,
}  # fmt: skip
ARRAYS = {"int32s": [1, -2, 3], "floats": [0.5, -1.5], "strings": ["a", "é", ""], "bools": [True, False]}


def small_floats(dtype):
    return np.arange(-30, 30).reshape(3, 20).astype(dtype)


@pytest.mark.parametrize("order", ORDERS)
def test_what_gguf_py_writes_is_read(order, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama", endianess=ORDERS[order])
    for name, value in SCALARS.items():
        getattr(writer, f"add_{name}")(f"k.{name}", value)
    writer.add_string("text", "é😀")
    for name, values in ARRAYS.items():
        writer.add_array(name, values)
    for dtype in ("f4", "f2", "f8", "i1", "i2", "i4", "i8"):
        writer.add_tensor(dtype, small_floats(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_gguf(tmp_path / "a.gguf")
    assert checkpoint.header.byte_order == order
    values = dict(checkpoint.metadata)
    assert {k.removeprefix("k."): v for k, v in values.items() if k.startswith("k.")} == SCALARS
    assert (values["general.architecture"], values["text"]) == ("llama", "é😀")
    assert {name: list(values[name]) for name in ARRAYS} == ARRAYS
    for dtype, tensor in checkpoint.items():
        assert_same_bits(tensor.numpy(), small_floats(dtype))


def test_gguf_py_reads_what_is_written_here(tmp_path):
    metadata = {
        "general.architecture": string("llama"), "a": u8(7), "b": f32(0.5), "c": f64(0.1), "d": boolean(True),
        "e": i64(-5), "f": strings(["x", "é", ""]), "g": numbers(ValueType.I16, [1, -2]), "h": strings([]),
        "general.alignment": u32(128),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    tensors, theirs = [], gguf.GGML_QUANT_SIZES
    for kind in TENSOR_TYPES.values():
        if (
            kind.type_id in {int(t) for t in theirs} and kind.name != "Q8_1"
        ):  # gguf-py 0.19 gives Q8_1 blocks of 40 bytes
            raw = np.frombuffer(rng.bytes(3 * 2 * kind.block_bytes), np.uint8)
            tensors.append(TensorSource(kind.name, kind.name, (3, 2 * kind.block_size), lambda raw=raw: raw))
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    read = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert read.pop("h") == []
    assert list(read) == [key for key in metadata if key != "h"]
    for key, value in read.items():
        ours = metadata[key].value
        assert value == (ours.tolist() if isinstance(ours, np.ndarray) else ours)
    assert len(reader.tensors) == len(tensors) > 30
    for theirs, ours in zip(reader.tensors, tensors, strict=True):
        assert (theirs.name, tuple(theirs.shape[::-1].tolist()), theirs.tensor_type.name) == (
            ours.name,
            ours.shape,
            ours.dtype,
        )
        assert theirs.data.tobytes() == ours.data().tobytes()


def test_files_that_its_tool_makes_big_endian_read_as_before(tmp_path):
    rng = np.random.default_rng(0)
    names = [kind.name for kind in TENSOR_TYPES.values() if kind.halves is not None] + ["F32", "F16", "BF16"]
    assert len(names) == 9
    tensors = []
    for kind in (kind for kind in TENSOR_TYPES.values() if kind.name in names):
        raw = np.frombuffer(rng.bytes(3 * 2 * kind.block_bytes), np.uint8)
        tensors.append(TensorSource(kind.name, kind.name, (3, 2 * kind.block_size), lambda raw=raw: raw))
    metadata = {"general.architecture": string("llama"), "a": strings(["x", "é"]), "b": numbers(ValueType.F64, [1, 2])}
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    before = open_gguf(tmp_path / "a.gguf")
    raw = {name: tensor.raw().tobytes() for name, tensor in before.tensors.items()}
    changed = tmp_path / "b.gguf"
    changed.write_bytes((tmp_path / "a.gguf").read_bytes())
    command = [sys.executable, "-m", "gguf.scripts.gguf_convert_endian", changed, "big"]
    subprocess.run(command, input="YES\n", text=True, capture_output=True, check=True)
    after = open_gguf(changed)
    assert after.header.byte_order == "big"
    assert changed.read_bytes() != (tmp_path / "a.gguf").read_bytes()
    assert {name: tensor.raw().tobytes() for name, tensor in after.tensors.items()} == raw
    for name, tensor in after.items():
        assert_same_bits(tensor.numpy(), before[name].numpy())
    write_gguf(tmp_path / "c.gguf", after.typed_metadata, [t.source() for t in after.tensors.values()])
    assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_its_tool_refuses_the_types_that_are_refused_here(tmp_path):
    for kind in TENSOR_TYPES.values():
        if kind.block_size == 1 or kind.halves is not None or kind.name in ("Q8_1", "Q2_0"):
            continue
        raw = np.zeros(kind.block_bytes, np.uint8)
        source = TensorSource("t", kind.name, (kind.block_size,), lambda raw=raw: raw)
        write_gguf(tmp_path / "a.gguf", {"general.architecture": string("llama")}, [source])
        reader = gguf.GGUFReader(tmp_path / "a.gguf")
        assert reader.tensors[0].tensor_type not in byteswap_tensors


def test_smollm2_reads_alike():
    reader, ours = gguf.GGUFReader(gguf_path()), open_gguf(gguf_path())
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, field in fields.items():
        value = ours.metadata[name]
        assert field.contents() == (list(value) if ours.metadata.typed(name).is_array else value)
    for theirs in reader.tensors:
        assert theirs.data.tobytes() == ours[theirs.name].numpy().tobytes()


# gguf-py is a tool for files that are known to be good: what it makes of the corpus of broken files.
HANGS = {"KV_BAD_VALUE_SIZE", "an array whose bytes wrap"}
TAKEN = {
    "DATA_INCONSISTENT_ALIGN",
    "KV_EMPTY_KEY",
    "TENSORS_BAD_NAME_SIZE",
    "TENSORS_BAD_N_DIMS",
    "TENSORS_BAD_OFFSET",
    "TENSORS_INCONSISTENT_ALIGN",
    "TENSORS_ZERO_DIM",
    "a first dimension of 0",
    "a gap",
    "a gap at the start",
    "a key one byte too long",
    "a key with a NUL",
    "a name with a NUL",
    "a string of half the address space",
    "a string past the end",
    "a tensor without a name",
    "a terminal escape in a name",
    "an array of arrays",
    "an array of nothing known",
    "an array one too long",
    "an array's string of 2^64 - 1 bytes",
    "an empty array of arrays",
    "an offset that is not aligned",
    "an overlap",
    "no dimensions",
    "strings past the end",
    "tensors out of order",
    "the longest string",
    "the same bytes twice",
}


class StoppedError(Exception):
    """It has read for longer than any file here can justify."""


def outcome(content, path):
    """`taken`, `refused` or `hangs`: a loop as long as the file claims."""

    def stop(number, frame):
        raise StoppedError

    path.write_bytes(content)
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gguf.GGUFReader(path)
    except StoppedError:
        return "hangs"
    except Exception:  # whatever it stumbles over
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return "taken"


def test_what_gguf_py_makes_of_the_broken_files_is_known(tmp_path):
    outcomes = {case: outcome(content, tmp_path / "x.gguf") for case, (content, _) in BROKEN.items()}
    assert {case for case, how in outcomes.items() if how == "hangs"} == HANGS
    assert {case for case, how in outcomes.items() if how == "taken"} == TAKEN


def test_what_is_read_here_gguf_py_takes_but_for_version_1(tmp_path):
    refused = {case for case, content in LOADED.items() if outcome(content, tmp_path / "x.gguf") != "taken"}
    assert refused == {"HEADER_BAD_VERSION_1"}
