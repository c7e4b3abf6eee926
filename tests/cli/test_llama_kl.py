"""`refquant perplexity --method llama.cpp`, `--save-kl-base` and `--kl-base`."""

import json

import pytest

from refquant.cli import main
from refquant.models import embedded

MODEL, STORIES = str(embedded.path()), str(embedded.text_path())


def run(capsys, *arguments):
    code = main(["perplexity", MODEL, *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def base(capsys, tmp_path):
    path = tmp_path / "base.kld"
    how = ["--text", STORIES, "--method", "llama.cpp", "--window", "64", "--limit", "256"]
    code, out, err = run(capsys, *how, "--save-kl-base", path, "--json")
    assert (code, err) == (0, "")
    return path, json.loads(out)


def test_a_base_file_is_written_beside_the_figure_and_read_again(capsys, base):
    path, measured = base
    assert (measured["method"], measured["window"], measured["scored_tokens"]) == ("llama.cpp", 64, 4 * 31)
    code, out, err = run(capsys, "--kl-base", path, "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert (code, err) == (0, "")
    assert found["perplexity"] == pytest.approx(measured["perplexity"], rel=1e-5)
    assert abs(found["kl_mean"]) < 1e-4
    assert found["same_top"] == 1


def test_a_quantized_model_diverges_from_its_base_file(capsys, base):
    code, out, _ = run(capsys, "--kl-base", base[0], "--format", "int4-g32")
    assert code == 0
    assert "quantized to int4-g32" in out
    for words in ("correlation", "KL largest", "KL 99.9 %", "Δp median", "RMS Δp", "same top token"):
        assert words in out


def test_options_that_the_base_file_has_decided_are_refused(capsys, base):
    code, _, err = run(capsys, "--kl-base", base[0], "--window", "32", "--limit", "3")
    assert code == 2
    assert "--window, --limit given with --kl-base" in err


def test_a_base_file_is_kept_by_the_method_llama_cpp_alone(capsys, tmp_path):
    code, _, err = run(capsys, "--text", STORIES, "--save-kl-base", tmp_path / "base")
    assert code == 2
    assert "--method llama.cpp" in err
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_is_refused_by_name(capsys):
    code, _, err = run(capsys, "--kl-base", STORIES)
    assert code == 2
    assert "not a base file of llama-perplexity" in err
