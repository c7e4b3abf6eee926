"""Every command that takes MODEL takes a GGUF file: the embedded model as one, its tokenizer left out."""

import json

import pytest

from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.cli import main
from refquant.conversion.hugging_face import as_gguf
from refquant.models import embedded
from tests.models.gguf_models import LOSSLESS, folder_of, stored, write
from tests.models.random_models import CONFIGS


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    converted = as_gguf(embedded.path(), "f32")
    metadata = {key: v for key, v in converted.typed_metadata.items() if not key.startswith("tokenizer.")}
    made = tmp_path_factory.mktemp("gguf") / "stories.gguf"
    write_gguf(made, metadata, [TensorSource(t.name, t.dtype, t.shape, t.numpy) for t in converted.tensors.values()])
    return made


@pytest.fixture
def ids(tmp_path):
    file = tmp_path / "ids.json"
    file.write_text(json.dumps([1, *(i * 7 % 500 for i in range(200))]))
    return str(file)


def document(capsys, *arguments):
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    assert (code, captured.err) == (0, "")
    return json.loads(captured.out)


def test_perplexity_of_ids_is_that_of_the_folder(capsys, path, ids):
    ours = document(capsys, "perplexity", path, "--ids", ids)
    theirs = document(capsys, "perplexity", embedded.path(), "--ids", ids)
    assert ours["perplexity"] == theirs["perplexity"]
    assert ours["ids_sha256"] == theirs["ids_sha256"]


def test_the_base_of_a_table_is_the_model_in_the_file(capsys, path, ids):
    ours = document(capsys, "bench", path, "--ids", ids, "--formats", "int8")
    theirs = document(capsys, "bench", embedded.path(), "--ids", ids, "--formats", "int8")
    for mine, other in zip(ours["rows"], theirs["rows"], strict=True):
        assert mine["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)
        assert mine["bytes"] == other["bytes"]


def test_text_without_a_tokenizer_is_a_clear_error(capsys, path):
    assert main(["generate", str(path), "--prompt", "Once"]) == 2
    assert "stories.gguf: no tokenizer; generate needs one" in capsys.readouterr().err


def test_a_file_that_is_no_model_ends_without_a_traceback(capsys, tmp_path):
    metadata, arrays = stored(folder_of(LOSSLESS["llama"], tmp_path / "folder"))
    del arrays["output_norm.weight"]
    broken = write(tmp_path / "broken.gguf", metadata, arrays)
    assert main(["perplexity", str(broken), "--ids", "none.json"]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    (tmp_path / "ids.json").write_text("[1, 2, 3]")
    assert main(["perplexity", str(broken), "--ids", str(tmp_path / "ids.json")]) == 2
    assert "broken.gguf: the checkpoint lacks output_norm.weight" in capsys.readouterr().err


def test_quantizing_a_folder_says_what_of_it_gguf_cannot_say(capsys, tmp_path):
    folder = folder_of(CONFIGS["MistralForCausalLM"], tmp_path / "folder")
    arguments = ["quantize", str(folder), "--format", "Q8_0", "--dry-run"]
    window = "attention slides a window of 9; the GGUF's of None, in 3 of 3 layers"
    assert document(capsys, *arguments)["lost"] == [window]
    assert main(arguments) == 0
    assert f"lost: {window}" in " ".join(capsys.readouterr().out.split())
    (tokenizer,) = document(capsys, "quantize", embedded.path(), "--format", "F16", "--dry-run")["lost"]
    assert tokenizer.startswith("tokenizer: ")
