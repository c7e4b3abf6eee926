"""A Hugging Face folder, quantized, against llama.cpp's converter and then llama-quantize."""

import pytest
import torch

from refquant.conversion import convert, hugging_face, open_source
from tests.peers import hf_converter
from tests.peers.llama_quantize import assert_same_file, llama_quantize, random_imatrix
from tests.peers.test_transformers import build

pytestmark = [pytest.mark.peers, pytest.mark.slow]

FOLDERS = {"llama, tied": (torch.float32, "auto"), "llama": (torch.float32, "f32"), "qwen2": (torch.bfloat16, "auto")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each folder, with the converter's GGUF beside it: one process converts them all."""
    home = tmp_path_factory.mktemp("folders")
    jobs = []
    for name, (dtype, outtype) in FOLDERS.items():
        folder = home / name.replace(", ", "-")
        build(name, folder).to(dtype).save_pretrained(folder)
        jobs.append((folder, outtype, folder.with_suffix(".gguf")))
    hf_converter.convert(jobs)
    return {name: job[0] for name, job in zip(FOLDERS, jobs, strict=True)}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_becomes_the_file_that_converter_and_llama_quantize_make(folders, tmp_path, monkeypatch, name):
    monkeypatch.setattr(hugging_face, "_tokenizer", lambda folder, name, pre: {})  # as the converter is run here
    plain, outtype = folders[name].with_suffix(".gguf"), FOLDERS[name][1]
    imatrix = random_imatrix(tmp_path / "i.gguf", plain)
    for kind in ("Q4_K_M", "Q8_0"):
        llama_quantize("--imatrix", imatrix, plain, tmp_path / "theirs.gguf", kind, 1)
        convert(open_source(folders[name], outtype), tmp_path / "ours.gguf", kind, imatrix=imatrix)
        assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
