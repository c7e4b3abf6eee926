"""Hugging Face folders in GGUF's terms against llama.cpp's converter: every tensor's bits, every key, every order."""

import filecmp
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from refquant.checkpoints.gguf_split import open_gguf
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.conversion import hugging_face
from refquant.conversion.hugging_face import as_gguf
from refquant.conversion.hugging_face_tensors import llama3_divisors
from refquant.models.rope import Llama3Rope
from tests.peers import smollm2
from tests.peers.hf_converter import convert, convert_whole
from tests.peers.test_transformers import VOCAB
from tests.peers.test_transformers import build as build_float32

pytestmark = pytest.mark.peers

OUTTYPES = ("f32", "f16", "bf16", "auto")
FOLDERS: dict[str, torch.dtype] = {
    "llama": torch.float32,
    "llama, tied": torch.bfloat16,
    "llama, biases": torch.float16,
    "llama, one head a group": torch.bfloat16,
    "llama, rope linear": torch.float32,
    "llama, rope llama3": torch.float32,
    "llama, rope llama3, wide ramp": torch.bfloat16,
    "llama, rope yarn": torch.float32,
    "llama, rope yarn, betas": torch.float32,
    "llama, rope yarn, given factor": torch.float32,
    "llama, rope dynamic": torch.float32,
    "llama, rope longrope": torch.float32,
    "mistral, sliding": torch.bfloat16,
    "qwen2": torch.bfloat16,
    "qwen2, sliding": torch.float32,
    "qwen3": torch.float16,
    "qwen3, sliding": torch.float32,
    "gemma2": torch.bfloat16,
    "gemma2, low caps": torch.float16,
    "gemma3": torch.bfloat16,
    "gemma3, scaled": torch.float16,
    "phi3": torch.bfloat16,
    "phi3, sliding, partial": torch.float32,
    "phi3, longrope": torch.float16,
    "gpt2": torch.float16,
}


def build(name: str, folder: Path) -> Path:
    model = build_float32(name, folder).to(FOLDERS[name])
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB" if name == "llama, one head a group" else "1GB")
    if name.startswith("gemma3"):  # the converter cuts the embedding to as many tokens as it finds here
        tokenizer = {"model": {"vocab": {str(i): i for i in range(VOCAB - 5)}}, "added_tokens": [{}, {}]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if name == "gpt2":  # the converter reads n_ctx, which transformers no longer writes
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"n_ctx": config["n_positions"]}))
    return folder


@pytest.fixture(autouse=True)
def _without_vocab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `convert`; test_llama_vocab.py compares tokenizers."""
    if "folders" in request.fixturenames:
        monkeypatch.setattr(hugging_face, "_tokenizer", lambda folder, name, pre: {})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every folder, and beside it the four GGUFs of the converter."""
    home = tmp_path_factory.mktemp("Tiny-Folders-1M")
    made = {name: build(name, home / name.replace(", ", "-").replace(" ", "-")) for name in FOLDERS}
    convert([(path, kind, path / f"{kind}.gguf") for path in made.values() for kind in OUTTYPES])
    return made


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("name", FOLDERS)
def test_tensors_are_those_of_the_converter_to_the_bit(name: str, outtype: str, folders: dict[str, Path]) -> None:
    theirs, ours = open_gguf(folders[name] / f"{outtype}.gguf"), as_gguf(folders[name], outtype)
    assert [(t.name, t.dtype, t.shape) for t in ours.tensors.values()] == [
        (t.name, t.dtype, t.shape) for t in theirs.tensors.values()
    ]
    for tensor in theirs.tensors.values():
        np.testing.assert_array_equal(ours.tensors[tensor.name].numpy().view(np.uint8), tensor.numpy().view(np.uint8))


@pytest.mark.parametrize("outtype", OUTTYPES)
@pytest.mark.parametrize("name", FOLDERS)
def test_metadata_is_that_of_the_converter_with_its_types_and_its_order(
    name: str, outtype: str, folders: dict[str, Path]
) -> None:
    theirs, ours = open_gguf(folders[name] / f"{outtype}.gguf"), as_gguf(folders[name], outtype)
    expected = theirs.typed_metadata
    assert list(ours.typed_metadata) == list(expected)
    for key, value in ours.typed_metadata.items():
        stored = np.float32(value.value).item() if value.type_name == "f32" else value.value
        assert (key, value.type_name, stored) == (key, expected[key].type_name, expected[key].value)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0, 1_000_000.0])
@pytest.mark.parametrize(("dim", "factor", "length"), [(128, 8.0, 8192), (64, 32.0, 8192), (96, 3.3, 5000)])
def test_divisors_of_llama_3_are_those_that_torch_computes(theta: float, dim: int, factor: float, length: int) -> None:
    """The formula of the converter's LlamaModel in torch's float32, for the published models among others."""
    low, high = 1.0, 4.0
    frequencies = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    wavelengths = 2 * math.pi / frequencies
    smooth = (length / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    expected = torch.where(wavelengths > length / low, torch.tensor(factor), between)
    expected = torch.where(wavelengths < length / high, torch.tensor(1.0), expected).numpy()
    found = llama3_divisors(
        Llama3Rope(
            rope_theta=theta,
            dim=dim,
            max_position_embeddings=4 * length,
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=length,
        )
    )
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.slow
def test_the_file_of_smollm2_is_the_converter_s_byte_for_byte(tmp_path: Path) -> None:
    convert_whole(smollm2.folder(), "f16", tmp_path / "theirs.gguf")
    ours = as_gguf(smollm2.folder(), "f16")
    sources = [TensorSource(t.name, t.dtype, t.shape, t.numpy) for t in ours.tensors.values()]
    write_gguf(tmp_path / "ours.gguf", ours.typed_metadata, sources)
    assert filecmp.cmp(tmp_path / "ours.gguf", tmp_path / "theirs.gguf", shallow=False)
    assert ours.lost == ()
    for file in tmp_path.iterdir():  # half a gigabyte that pytest would keep
        file.unlink()
