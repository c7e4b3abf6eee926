import json
import subprocess
import sys

import numpy as np
import pytest

import refquant as rq
from refquant.cli import main
from refquant.models import embedded

MODEL, STORIES = str(embedded.path()), str(embedded.text_path())
PER_STORY = [MODEL, "--text", STORIES, "--per-document"]


def perplexity(capsys, *arguments):
    code = main(["perplexity", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments):
    code, out, err = perplexity(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=pytest.fail)


def test_json_has_what_the_figure_means_nothing_without(capsys):
    found = document(capsys, *PER_STORY)
    assert found["perplexity"] == pytest.approx(3.1307, abs=1e-3)
    assert (found["method"], found["window"], found["stride"]) == ("per-document", 512, 512)
    assert (found["scored_tokens"], found["tokens"], found["documents"], found["bos"]) == (3800, 3920, 12, "always")
    assert found["tokens_per_second"] > 0
    assert found["stderr"] > 0
    assert found["nll"] == pytest.approx(3800 * np.log(found["perplexity"]))
    assert len(bytes.fromhex(found["ids_sha256"])) == 32


def test_text_for_people_names_the_same_facts(capsys):
    code, out, err = perplexity(capsys, *PER_STORY, "--limit", "300", "--window", "64", "--method", "sliding")
    assert (code, err) == (0, "")
    for part in (
        "scored tokens",
        "300 of 302, in 2 document(s)",
        "sliding, window 64, stride 32",
        "sha256",
        "tokens/s",
    ):
        assert part in out


def test_text_and_its_ids_give_one_figure_and_one_hash(capsys, tmp_path):
    tokenizer = rq.load_model(MODEL).tokenizer
    (tmp_path / "a.txt").write_bytes(b"Once upon a time,\r\nthere was a cat.\n")
    text = document(capsys, MODEL, "--text", tmp_path / "a.txt")
    ids = [tokenizer.bos_id, *tokenizer.encode("Once upon a time,\r\nthere was a cat.\n").tolist()]
    (tmp_path / "a.json").write_text(json.dumps(ids))
    (tmp_path / "b.json").write_text(json.dumps([ids]))
    (tmp_path / "a.ids").write_text(" ".join(map(str, ids[:5])) + "\n" + "\t".join(map(str, ids[5:])) + "\n")
    np.save(tmp_path / "a.npy", np.array(ids, np.uint16))
    for name in ("a.json", "b.json", "a.ids", "a.npy"):
        found = document(capsys, MODEL, "--ids", tmp_path / name)
        assert (found["ids_sha256"], found["nll"]) == (text["ids_sha256"], text["nll"])
        assert (text["bos"], found["bos"]) == ("always", "never")


def test_the_bos_rule_changes_ids_and_hash(capsys):
    short = [MODEL, "--text", STORIES, "--limit", "50"]
    always, never = (document(capsys, *short, "--bos", rule) for rule in ("always", "never"))
    assert (always["scored_tokens"], never["scored_tokens"]) == (50, 49)
    assert always["ids_sha256"] != never["ids_sha256"]


def test_a_separator_of_ones_own_makes_the_documents(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("One day.\n---\n\nTwo cats.\n---\n")
    found = document(capsys, MODEL, "--text", tmp_path / "a.txt", "--per-document", "--separator=---")
    assert found["documents"] == 2


def test_a_model_beside_itself_diverges_by_exactly_nothing(capsys):
    found = document(capsys, *PER_STORY, "--limit", "400", "--base", MODEL, "--base-memory", "100K")
    divergence = found["divergence"]
    assert (divergence["kl_mean"], divergence["kl_p999"], divergence["rms_dp"], divergence["same_top"]) == (0, 0, 0, 1)
    assert found["base_perplexity"] == found["perplexity"]


def test_a_scheme_is_measured_beside_its_base(capsys):
    arguments = [*PER_STORY, "--limit", "400", "--format", "int4-g32", "--base", MODEL]
    found = document(capsys, *arguments)
    assert (found["scheme"], found["embeddings"]) == ("int4-g32", "keep")
    assert found["perplexity"] > found["base_perplexity"]
    assert 0 < found["divergence"]["kl_mean"] < 1
    _, out, _ = perplexity(capsys, *arguments)
    for part in ("quantized to int4-g32", "KL mean", "KL 99.9 %", "same top token", "RMS Δp"):
        assert part in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MODEL, "--text", "missing.txt"], "missing.txt"),
        (["no-such-folder", "--text", STORIES], "no-such-folder"),
        ([*PER_STORY, "--format", "int4-g32-asymm"], "asym"),
        ([*PER_STORY, "--method", "slidng"], "'sliding'"),
        ([*PER_STORY, "--bos", "alway"], "'always'"),
        ([*PER_STORY, "--window", "513"], "the model has 512 positions"),
        ([*PER_STORY, "--window", "1"], "at least 2 tokens"),
        ([*PER_STORY, "--method", "sliding", "--window", "8", "--stride", "8"], "1 … 7"),
        ([*PER_STORY, "--method", "chunked", "--stride", "8"], "do not overlap"),
        ([*PER_STORY, "--limit", "0"], "limit = 0"),
        ([*PER_STORY, "--separator", ""], "empty separator"),
        ([*PER_STORY, "--format", "int4", "--embeddings", "drop"], "rule for embeddings"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = perplexity(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("refquant: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[1, 2", "not a JSON list"),
        ("a.json", b'{"ids": [1]}', "a JSON list of integers"),
        ("a.json", b"[1, 2.5]", "a JSON list of integers"),
        ("a.json", b"[1, true]", "a JSON list of integers"),
        ("a.json", b"[" * 100_000, "not a JSON list"),
        ("a.json", b"[]", "empty list"),
        ("a.json", b"[1, 1" + b"0" * 30 + b"]", "ids"),
        ("a.json", b"[1, 512]", "id 512 at index 1"),
        ("a.ids", b"1 2 three", "not numbers and white space"),
        ("a.ids", b"\xff\xfe1", "not UTF-8"),
        ("a.ids", b"", "empty list"),
        ("a.npy", b"PK\x03\x04 not an array", "not a .npy array"),
        ("a.npy", b"", "not a .npy array"),
    ],
)
def test_a_file_that_is_not_ids_is_refused_with_its_name(capsys, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    code, out, err = perplexity(capsys, MODEL, "--ids", tmp_path / name)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("shape", ["(99999999999,)", "(64, 64)", "(-64,)", "(64", "(064,)", "(2**70,)", "64"])
def test_an_array_file_that_claims_what_it_does_not_hold_is_refused(capsys, tmp_path, shape):
    np.save(tmp_path / "a.npy", np.arange(64))
    content = (tmp_path / "a.npy").read_bytes()
    claim = f"'shape': {shape}, }}".encode()
    begin = content.index(b"'shape'")
    (tmp_path / "a.npy").write_bytes(content[:begin] + claim + content[begin + len(claim) :])
    code, out, err = perplexity(capsys, MODEL, "--ids", tmp_path / "a.npy")
    assert (code, out) == (2, "")
    assert "a.npy: not a .npy array" in err


def test_text_that_is_not_utf8_and_a_file_of_nothing_are_refused(capsys, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"Once \xff")
    _, _, err = perplexity(capsys, MODEL, "--text", tmp_path / "a.txt")
    assert "not UTF-8 at byte 5" in err
    (tmp_path / "b.txt").write_bytes(b"\n<|endoftext|>\n")
    _, _, err = perplexity(capsys, MODEL, "--text", tmp_path / "b.txt", "--per-document")
    assert "no document" in err
    (tmp_path / "c.txt").write_bytes(b"")
    _, _, err = perplexity(capsys, MODEL, "--text", tmp_path / "c.txt")
    assert "empty text" in err


def test_ids_have_no_separator(capsys, tmp_path):
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    code, _, err = perplexity(capsys, MODEL, "--ids", tmp_path / "a.json", "--per-document")
    assert (code, "list of lists" in err) == (2, True)


@pytest.mark.parametrize("size", ["1T", "-1", "x", "", "1.5G"])
def test_a_size_that_is_none_is_bad_usage(capsys, size):
    with pytest.raises(SystemExit) as stop:
        main(["perplexity", *PER_STORY, f"--base-memory={size}"])
    assert stop.value.code == 2
    assert "500M" in capsys.readouterr().err


def test_help_teaches_with_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["perplexity", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for part in ("examples:", "--ids ids.json", "default: half the window", "<|endoftext|>"):
        assert part in out


def test_the_program_runs_as_a_module():
    command = [sys.executable, "-m", "refquant", "perplexity", *PER_STORY, "--limit", "60", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["scored_tokens"] == 60
    assert done.stderr == ""
