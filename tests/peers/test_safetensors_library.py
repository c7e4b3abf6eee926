"""The reader against the safetensors library: what we accept it accepts too, with the same tensors to the bit."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

import refquant as rq
from refquant.errors import CheckpointError
from tests.checkpoints.corpus import BROKEN
from tests.checkpoints.files import WIDTHS, opened, write
from tests.checkpoints.test_broken_safetensors import mutated

pytestmark = pytest.mark.peers

TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz, "F8_E8M0": torch.float8_e8m0fnu, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

# What the library takes and we do not, on purpose (spec/safetensors.md, section 2).
STRICTER = {
    "a tensor twice",
    "a tensor twice, once escaped",
    "a key of the metadata twice",
    "an empty name",
    "an unknown field",
    "metadata that is null",
    "white space first",
    "33 dimensions",
}


def as_library(content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {n: (t["dtype"], tuple(t["shape"]), bytes(t["data"])) for n, t in safetensors.deserialize(content)}


def as_ours(folder, content: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    tensors = opened(folder, content).values()
    return {t.name: (t.dtype, t.shape, t.path.read_bytes()[t._offset : t._offset + t.nbytes]) for t in tensors}


@settings(max_examples=2000)
@given(content=mutated())
def test_what_we_accept_the_library_accepts_with_the_same_content(content, tmp_path_factory):
    try:
        ours = as_ours(tmp_path_factory.getbasetemp(), content)
    except CheckpointError:
        return
    assert as_library(content) == ours


@pytest.mark.parametrize("case", BROKEN)
def test_what_we_refuse_the_library_refuses_or_the_page_says_why(case):
    content, _ = BROKEN[case]
    if case in STRICTER:
        as_library(content)
    else:
        with pytest.raises(safetensors.SafetensorError):
            as_library(content)


@pytest.mark.parametrize("dtype", WIDTHS)
def test_torch_files_of_every_dtype_read_alike(dtype, tmp_path):
    count = 1 << 16 if WIDTHS[dtype] == 2 else 1 << 10
    codes = np.arange(count * WIDTHS[dtype], dtype=np.uint8) if WIDTHS[dtype] != 2 else np.arange(count, dtype="<u2")
    raw = (codes % 2 if dtype == "BOOL" else codes).view(np.uint8)
    tensor = torch.from_numpy(raw.copy()).view(TORCH[dtype]).reshape(4, -1)
    save_torch({"t": tensor}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    ours = rq.open(tmp_path / "a.safetensors")["t"]
    assert (ours.dtype, ours.shape) == (dtype, tuple(tensor.shape))
    assert ours.numpy().tobytes() == raw.tobytes()
    assert torch.equal(load_torch(tmp_path / "a.safetensors")["t"].view(torch.uint8), tensor.view(torch.uint8))
    if tensor.is_floating_point():
        finite = ~torch.isnan(tensor.to(torch.float64)).numpy()
        with np.errstate(over="ignore"):
            expected = tensor.to(torch.float32).numpy()
        if dtype == "F64" and (np.isinf(expected) & np.isfinite(tensor.numpy())).any():
            with pytest.raises(rq.NonFiniteError):
                ours.dequantize()
        else:
            widened = ours.dequantize()
            assert (np.isnan(widened) == ~finite).all()
            assert (widened.view(np.uint32)[finite] == expected.view(np.uint32)[finite]).all()


def test_shards_that_transformers_style_indices_name_read_as_the_library_reads_each(tmp_path):
    rng = np.random.default_rng(0)
    shards = {
        f"model-0000{i}-of-00003.safetensors": {f"layer.{i}.{n}": ("F32", [2, 3], rng.bytes(24)) for n in "abc"}
        for i in (1, 2, 3)
    }
    for name, tensors in shards.items():
        write(tmp_path / name, tensors)
    ours = rq.open(tmp_path)
    theirs = {n: a for shard in shards for n, a in load_file(tmp_path / shard).items()}
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].numpy().tobytes() == array.tobytes()


DOOR = """
import sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="np") as file:
    try:
        file.get_tensor("t")
    except (AttributeError, TypeError) as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2"])
def test_the_numpy_door_of_the_library_has_no_small_floats_which_is_why_we_map_files_ourselves(dtype, tmp_path):
    # In a process of its own: importing ml_dtypes, as other tests do, gives NumPy a bfloat16.
    path = write(tmp_path / "a.safetensors", {"t": (dtype, [2], bytes(2 * WIDTHS[dtype]))})
    done = subprocess.run([sys.executable, "-c", DOOR, path], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("AttributeError", "TypeError")
