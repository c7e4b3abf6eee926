"""Importance matrices of the embedded model, against sums written out by hand."""

import json

import numpy as np
import pytest

import refquant as rq
from refquant.calibration import importance_matrix
from refquant.checkpoints.imatrix import read_imatrix
from refquant.cli import main
from refquant.errors import NonFiniteError, RefquantError
from refquant.models import embedded
from refquant.models.weights import Dense

MODEL = rq.load_model(embedded.path())
IDS = np.random.default_rng(0).integers(3, 512, 100)


def first_inputs(ids):
    """What enters q, k and v of the first block: the embeddings' RMS norm, in float64."""
    weights = MODEL.weights
    x = weights[MODEL.names.embedding].dequantize()[ids].astype(np.float64)
    x /= np.sqrt((x * x).mean(-1, keepdims=True) + MODEL.config.norm_epsilon)
    return x * weights["model.layers.0.input_layernorm.weight"].dequantize()


def test_an_entry_holds_the_squares_of_what_entered_each_column():
    found = importance_matrix(MODEL, IDS, window=32)
    expected = (first_inputs(IDS[:96]) ** 2).sum(0)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        assert found.entries[name].sums == pytest.approx(expected[None], rel=1e-5)
        assert found.entries[name].counts.tolist() == [96]
    assert (found.chunk_count, found.chunk_size, found.datasets) == (3, 32, ("text",))


def test_every_matrix_of_every_block_is_there_under_its_gguf_name_and_no_other():
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    found = importance_matrix(MODEL, IDS, window=32)
    assert set(found.entries) == {f"blk.{layer}.{name}.weight" for layer in range(5) for name in names}
    assert all(entry.counts.tolist() == [96] for entry in found.entries.values())


def test_a_text_gets_bos_and_every_window_begins_with_it():
    text = "Once upon a time there was a little girl named Lily. " * 4
    ids = [MODEL.tokenizer.bos_id, *MODEL.tokenizer.encode(text)]
    ids = np.array(ids[: len(ids) // 16 * 16])
    ids[::16] = MODEL.tokenizer.bos_id
    found = importance_matrix(MODEL, text, window=16)
    assert found.entries["blk.0.attn_q.weight"].sums == pytest.approx((first_inputs(ids)[None] ** 2).sum(1), rel=1e-5)


def test_watching_changes_no_output():
    before = MODEL.hidden(IDS[None, :32])
    importance_matrix(MODEL, IDS, window=32)
    assert np.array_equal(MODEL.hidden(IDS[None, :32]), before)


def test_a_limit_leaves_out_what_lies_behind_it():
    all_of_it = importance_matrix(MODEL, IDS[:64], window=32)
    limited = importance_matrix(MODEL, IDS, window=32, limit=64)
    for name, entry in all_of_it.entries.items():
        assert np.array_equal(entry.sums, limited.entries[name].sums)


def test_a_quantized_model_is_watched_too():
    name = MODEL.linear_names[0]
    quantized = MODEL.with_weights({name: rq.quantize(MODEL.weights[name].dequantize(), "int8-row")})
    found = importance_matrix(quantized, IDS, window=32).entries["blk.0.attn_q.weight"]
    assert found.sums == pytest.approx((first_inputs(IDS[:96]) ** 2).sum(0)[None], rel=1e-5)


@pytest.mark.parametrize(("window", "message"), [(0, "window = 0 given"), (513, "1 … 512"), (101, "has 100 tokens")])
def test_a_window_that_cannot_be_is_refused(window, message):
    with pytest.raises(RefquantError, match=message):
        importance_matrix(MODEL, IDS, window=window)


def test_a_tied_head_is_not_collected_for():
    with pytest.raises(RefquantError, match=r"there is no output\.weight"):
        importance_matrix(MODEL, IDS, window=32, head=True)


def test_activations_that_are_not_finite_are_refused_by_the_tensors_name():
    name = MODEL.names.block(0)["down"] + ".weight"
    w = MODEL.weights[name].dequantize().copy()
    w[0, 0] = np.inf
    with pytest.raises(NonFiniteError, match=r"blk\.1\.attn_q\.weight: the squares of what enters column 0"):
        importance_matrix(MODEL.with_weights({name: Dense(w)}), IDS, window=32)


@pytest.mark.parametrize("name", ["imatrix.gguf", "imatrix.dat"])
def test_the_command_writes_a_file_that_is_read_back(tmp_path, capsys, name):
    text = tmp_path / "text"
    text.write_text("Once upon a time there was a little girl named Lily. " * 4)
    arguments = ["imatrix", str(embedded.path()), "--text", str(text), "--window", "16", "--limit", "48"]
    assert main([*arguments, "--output", str(tmp_path / name), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tensors"], report["windows"], report["tokens"]) == (35, 3, 48)
    read = read_imatrix(tmp_path / name)
    made = importance_matrix(MODEL, text.read_text(), window=16, limit=48)
    for entry in made.entries:
        assert read.entries[entry].importance == pytest.approx(made.entries[entry].importance, rel=1e-6)


def test_an_output_that_cannot_be_written_is_refused_before_the_model_runs(tmp_path, capsys):
    (tmp_path / "text").write_text("Once")
    arguments = ["imatrix", str(embedded.path()), "--text", str(tmp_path / "text")]
    assert main([*arguments, "--output", str(tmp_path / "no" / "such")]) == 2
    assert "name a file in a folder that is there" in capsys.readouterr().err
