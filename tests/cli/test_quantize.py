import json
import re

import numpy as np
import pytest

import refquant as rq
from refquant.checkpoints.imatrix import Imatrix, ImatrixEntry, write_imatrix
from refquant.cli import main
from refquant.cli import quantize as command
from refquant.conversion import FILE_TYPES
from tests.conversion.models import facts, write_model


def quantize(capsys, *arguments):
    code = main(["quantize", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "in.gguf", layers=2).path


@pytest.fixture
def imatrix(tmp_path):
    entries = {
        "blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 256), np.float32), np.array([4])),
        "blk.0.ffn_up.weight": ImatrixEntry(np.ones((1, 256), np.float32), np.array([0])),
        "blk.9.ffn_up.weight": ImatrixEntry(np.ones((1, 256), np.float32), np.array([1])),
    }
    write_imatrix(tmp_path / "i.gguf", Imatrix(entries, ("t",), 1, 4))
    return tmp_path / "i.gguf"


def test_a_file_is_written_and_summed_up_by_type(capsys, model, tmp_path):
    code, out, err = quantize(capsys, model, tmp_path / "out.gguf", "--format", "q4_k_m")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    made = rq.open(tmp_path / "out.gguf")
    assert made.metadata["general.file_type"] == 15
    total = sum(tensor.nbytes for tensor in made.values())
    weights = sum(tensor.size for tensor in made.values())
    assert ["total", f"{len(made)}", f"{weights:,}", f"{total:,}", f"{total * 8 / weights:.3f}"] in lines
    assert "Q4_K_M, from" in out


def test_dry_run_writes_nothing_and_says_why(capsys, model, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out, err = quantize(capsys, model, "--format", "Q4_K_M", "--dry-run")
    assert (code, err) == (0, "")
    assert sorted(tmp_path.iterdir()) == before
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "output.weight 8 × 256 F32 Q6_K 1,680 the output matrix" in lines
    assert "blk.0.attn_q.weight 256 × 256 F32 Q4_K 36,864 the base of Q4_K_M" in lines
    assert any(
        re.match(r"blk.1.attn_v.weight 256 × 256 F32 Q6_K 53,760 attn_v in the first or last 1/8", line)
        for line in lines
    )


def test_json_is_one_document(capsys, model, tmp_path):
    code, out, err = quantize(capsys, model, tmp_path / "out.gguf", "--format", "Q8_0", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    made = rq.open(tmp_path / "out.gguf")
    assert {t["name"]: (t["to"], tuple(t["shape"]), t["bytes"]) for t in document["tensors"]} == {
        name: (tensor.dtype, tensor.shape, tensor.nbytes) for name, tensor in made.items()
    }
    assert (document["file_type"], document["fallbacks"], document["imatrix"]) == ("Q8_0", 0, None)
    assert document["bytes"] == made.nbytes


def test_fallbacks_missing_importances_and_requantizing_are_said(capsys, tmp_path):
    path = write_model(tmp_path / "odd.gguf", ff=96).path
    _, out, _ = quantize(capsys, path, "--format", "IQ2_S", "--dry-run")
    text = " ".join(out.split())
    assert "2 of 19 tensors" in text
    assert "rows hold no whole IQ2_XS blocks" in text
    assert "no use without --imatrix: blk.0.attn_k.weight, blk.0" in text
    quantize(capsys, path, tmp_path / "q.gguf", "--format", "Q8_0")
    _, out, _ = quantize(capsys, tmp_path / "q.gguf", "--format", "Q4_0", "--dry-run")
    assert "quantized before, which needs --allow-requantize: output.weight" in " ".join(out.split())
    code, _, err = quantize(capsys, path, tmp_path / "out.gguf", "--format", "Q4_K_S", "--no-fallback")
    assert (code, "rows of 96 weights" in err) == (2, True)


def test_what_an_importance_matrix_does_not_know_is_said(capsys, model, imatrix, tmp_path):
    _, out, _ = quantize(capsys, model, tmp_path / "out.gguf", "--format", "Q8_0", "--imatrix", imatrix)
    text = " ".join(out.split())
    assert "no importance for 14 of 16: output.weight" in text
    assert "matrices that have seen nothing: blk.0.ffn_up.weight (1 of 1)" in text
    assert "entries of the importance matrix for no tensor that is quantized: 1" in text
    _, out, _ = quantize(capsys, model, tmp_path / "o.gguf", "--format", "Q8_0", "--imatrix", imatrix, "--json",
                         "--include-weights", "attn")  # fmt: skip
    assert json.loads(out)["imatrix"]["partial"] == []
    assert rq.open(tmp_path / "o.gguf").metadata["quantize.imatrix.entries_count"] == 1


def test_options_reach_the_plan(capsys, model, tmp_path):
    (tmp_path / "types").write_text("attn_k=q5_0 attn=q5_1")
    arguments = ["--tensor-type", "ffn_up=f16", "--tensor-type-file", tmp_path / "types", "--tensor-type", "ffn=q8_0"]
    arguments += ["--output-tensor-type", "bf16", "--token-embedding-type", "q4_1", "--override-kv", "a.b=int:3"]
    arguments += ["--prune-layers", "0", "--threads", "1"]
    code, _, _ = quantize(capsys, model, tmp_path / "out.gguf", "--format", "Q4_0", *arguments)
    assert code == 0
    made = rq.open(tmp_path / "out.gguf")
    found = {
        name.removeprefix("blk.0.").removesuffix(".weight"): t.dtype for name, t in made.items() if len(t.shape) > 1
    }
    assert found == {
        **dict.fromkeys(("attn_output", "attn_q", "attn_v"), "Q5_1"),
        **dict.fromkeys(("ffn_down", "ffn_gate"), "Q8_0"),
        "attn_k": "Q5_0",
        "ffn_up": "F16",
        "output": "BF16",
        "token_embd": "Q4_1",
    }
    assert (made.metadata["a.b"], made.metadata["llama.block_count"]) == (3, 1)


@pytest.mark.parametrize("flag", ["--pure", "--leave-output-tensor"])
def test_flags_reach_the_plan(capsys, model, flag):
    _, out, _ = quantize(capsys, model, "--format", "Q4_K_M", "--dry-run", "--json", flag)
    kinds = {t["name"]: t["to"] for t in json.loads(out)["tensors"]}
    assert kinds["output.weight"] == {"--pure": "Q4_K", "--leave-output-tensor": "F32"}[flag]
    assert (kinds["blk.1.attn_v.weight"] == "Q4_K") == (flag == "--pure")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "Q4_K_X"], "unknown file type 'Q4_K_X'"),
        (["--format", "Q4_0", "--tensor-type", "x"], "write PATTERN=TYPE"),
        (["--format", "Q4_0", "--tensor-type", "x=y"], "unknown tensor type 'Y'"),
        (["--format", "Q4_0", "--output-tensor-type", "i32"], "unknown tensor type 'I32'"),
        (["--format", "Q4_0", "--override-kv", "x"], "write KEY=TYPE:VALUE"),
        (["--format", "Q4_0", "--prune-layers", "1,x"], "numbers of blocks between commas"),
        (["--format", "Q4_0", "--prune-layers", ""], "numbers of blocks between commas"),
        (["--format", "Q4_0", "--imatrix", "none"], "no such file"),
        (["--format", "Q4_0", "--include-weights", "x"], "add --imatrix"),
        (["--format", "Q4_0", "--tensor-type-file", "none"], "none"),
        (["--format", "Q4_0", "--threads", "0"], "threads 0"),
        (["--format", "IQ1_S"], "importance matrix"),
    ],
)
def test_bad_usage_is_an_error_and_writes_nothing(capsys, model, tmp_path, arguments, message):
    code, out, err = quantize(capsys, model, tmp_path / "out.gguf", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out.gguf").exists()


def test_an_output_is_needed_unless_nothing_is_written(capsys, model):
    code, _, err = quantize(capsys, model, "--format", "Q4_0")
    assert (code, "--dry-run" in err) == (2, True)


def test_a_selection_that_leaves_no_entry_is_an_error(capsys, model, imatrix, tmp_path):
    code, _, err = quantize(capsys, model, tmp_path / "o.gguf", "--format", "Q4_0", "--imatrix", imatrix,
                            "--include-weights", "nothing")  # fmt: skip
    assert (code, "no entry is left" in err) == (2, True)


def test_a_file_that_is_no_model_is_an_error(capsys, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0\0\0")
    code, _, err = quantize(capsys, tmp_path / "x.gguf", tmp_path / "o.gguf", "--format", "Q4_0")
    assert (code, "Traceback" in err) == (2, False)
    nameless = write_model(tmp_path / "n.gguf", {"a": facts()["general.architecture"]}).path
    code, _, err = quantize(capsys, nameless, tmp_path / "o.gguf", "--format", "Q4_0")
    assert (code, "general.architecture is None" in err) == (2, True)


def test_help_lists_every_file_type_and_those_that_need_an_importance_matrix(model):
    listed = set(re.findall(r"\b[A-Z]+[0-9]*(?:_[A-Z0-9]+)*\b", command.EPILOG.split("need an importance")[0]))
    assert {kind.name for kind in FILE_TYPES} <= listed
    needing = {kind.name for kind in FILE_TYPES if rq.conversion.plan(rq.open(model), kind.name).needing_imatrix}
    said = re.search(r"\n(\S.*) need an importance", command.EPILOG)[1]
    patterns = [word.replace("*", ".*") for word in re.findall(r"[A-Z0-9_*]{3,}", said)]
    assert needing == {k.name for k in FILE_TYPES if any(re.fullmatch(pattern, k.name) for pattern in patterns)}
