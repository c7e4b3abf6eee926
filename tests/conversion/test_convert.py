import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import refquant as rq
from refquant.checkpoints.gguf_split import SPLIT_KEYS, part_path
from refquant.checkpoints.gguf_split_writer import write_split
from refquant.checkpoints.gguf_values import string, u32
from refquant.checkpoints.gguf_writer import TensorSource
from refquant.checkpoints.imatrix import Imatrix, ImatrixEntry, write_imatrix
from refquant.conversion import ImatrixSource, Options, Override
from refquant.conversion.coverage import coverage
from refquant.errors import NonFiniteError, RefquantError, ScaleOverflowError, UnknownNameError
from tests.conversion.models import facts, write_model


def importances(model, value=2.0, seen=10):
    """An entry for every matrix, all alike."""
    entries = {}
    for name, tensor in model.items():
        if len(tensor.shape) > 1 and name.startswith("blk"):
            matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
            sums = np.full((matrices, tensor.shape[-1]), value, np.float32)
            entries[name] = ImatrixEntry(sums, np.full(matrices, seen, np.int64))
    return Imatrix(entries, ("text.txt",), 5, 512)


def test_every_tensor_is_what_quantize_makes_of_it(tmp_path):
    model = write_model(tmp_path / "in.gguf")
    decided = rq.convert(model.path, tmp_path / "out.gguf", "Q4_0")
    made = rq.open(tmp_path / "out.gguf")
    assert list(made) == [tensor.name for tensor in decided.tensors]
    for name, tensor in made.items():
        w = model[name].dequantize()
        expected = w if tensor.dtype == "F32" else rq.quantize(w, tensor.dtype.lower()).parts["blocks"]
        assert tensor.raw().tobytes() == expected.tobytes(), name
    assert {tensor.dtype for tensor in made.values()} == {"Q4_0", "Q6_K", "F32"}


def test_experts_are_weighed_each_by_their_own_row(tmp_path):
    model = write_model(tmp_path / "in.gguf", layers=1, experts=3)
    imatrix = importances(model)
    name = "blk.0.ffn_up_exps.weight"
    draw = np.random.default_rng(1)
    imatrix.entries[name].sums[:] = draw.random((3, 256), np.float32)
    rq.convert(model, tmp_path / "out.gguf", "Q4_0", imatrix=imatrix, threads=2)
    expected = rq.quantize(model[name].numpy(), "q4_0", imatrix=imatrix.entries[name].importance)
    assert rq.open(tmp_path / "out.gguf")[name].raw().tobytes() == expected.parts["blocks"].tobytes()


def test_metadata_keeps_its_order_and_what_the_conversion_says_comes_last(tmp_path):
    metadata = {"general.file_type": u32(0), **facts(), "split.no": u32(0)}
    model = write_model(tmp_path / "in.gguf", metadata)
    overrides = (Override("general.name", string("x")), Override("general.words", string("one")))
    imatrix = ImatrixSource(importances(model), "i" * 200)
    rq.convert(model, tmp_path / "out.gguf", "Q8_0", imatrix=imatrix, options=Options(overrides=overrides))
    made = rq.open(tmp_path / "out.gguf").metadata
    said = {
        "general.quantization_version": 2,
        "general.file_type": 7,
        "general.name": "x",
        "general.words": "one",
        "quantize.imatrix.file": "i" * 127,
        "quantize.imatrix.dataset": "text.txt",
        "quantize.imatrix.entries_count": len(imatrix.imatrix.entries),
        "quantize.imatrix.chunks_count": 5,
    }
    kept = [key for key in metadata if key not in said and key not in SPLIT_KEYS]
    assert list(made) == kept + list(said)
    assert {key: made[key] for key in said} == said


def test_copy_keeps_the_file_type_or_guesses_the_commonest(tmp_path):
    arrays = {f"blk.0.{i}.weight": np.ones((2, 4), np.float16) for i in range(3)} | {"a": np.ones(4, np.float32)}
    model = write_model(tmp_path / "in.gguf", None, arrays)
    rq.convert(model, tmp_path / "out.gguf", "COPY")
    made = rq.open(tmp_path / "out.gguf")
    assert made.metadata["general.file_type"] == 1024 + 1
    assert {name: tensor.raw().tobytes() for name, tensor in made.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }
    told = write_model(tmp_path / "told.gguf", facts() | {"general.file_type": u32(15)}, arrays)
    rq.convert(told, tmp_path / "out.gguf", "COPY")
    assert rq.open(tmp_path / "out.gguf").metadata["general.file_type"] == 15


def test_leading_axes_of_one_are_not_written(tmp_path):
    model = write_model(tmp_path / "in.gguf", None, {"a.weight": np.ones((1, 1, 4), np.float32)})
    rq.convert(model, tmp_path / "out.gguf", "F16")
    assert rq.open(tmp_path / "out.gguf")["a.weight"].shape == (4,)


def test_quantized_input_needs_permission(tmp_path):
    model = write_model(tmp_path / "in.gguf")
    rq.convert(model, tmp_path / "q8.gguf", "Q8_0")
    with pytest.raises(RefquantError, match=r"quantized already \(Q8_0\).*allow-requantize"):
        rq.convert(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q4_0")
    rq.convert(tmp_path / "q8.gguf", tmp_path / "out.gguf", "Q4_0", options=Options(allow_requantize=True))
    w = rq.open(tmp_path / "q8.gguf")["blk.0.ffn_up.weight"].dequantize()
    made = rq.open(tmp_path / "out.gguf")["blk.0.ffn_up.weight"]
    assert made.raw().tobytes() == rq.quantize(w, "q4_0").parts["blocks"].tobytes()


def test_a_missing_or_unfitting_importance_is_refused_before_anything_is_written(tmp_path):
    model = write_model(tmp_path / "in.gguf")
    with pytest.raises(RefquantError, match="none is given"):
        rq.convert(model, tmp_path / "out.gguf", "Q2_K_S")
    imatrix = importances(model)
    del imatrix.entries["blk.0.attn_q.weight"]
    with pytest.raises(RefquantError, match=r"attn_q.*no data for it"):
        rq.convert(model, tmp_path / "out.gguf", "Q2_K_S", imatrix=imatrix)
    other = Imatrix({"blk.0.attn_q.weight": ImatrixEntry(np.ones((1, 9), np.float32), np.ones(1, np.int64))})
    with pytest.raises(RefquantError, match="9 values for it, and 1 × 256 are needed"):
        rq.convert(model, tmp_path / "out.gguf", "Q4_0", imatrix=other)
    with pytest.raises(RefquantError, match=r"token_embd.*would become IQ2_XS"):  # by option; ggml itself demands one
        rq.convert(model, tmp_path / "out.gguf", "Q4_0", options=Options(token_embedding_type="IQ2_XS"))
    embedding = Imatrix({"token_embd.weight": other.entries["blk.0.attn_q.weight"]})
    rq.convert(model, tmp_path / "out.gguf", "Q4_0", imatrix=embedding)  # llama-quantize lets this one be
    assert rq.open(tmp_path / "out.gguf").metadata["quantize.imatrix.entries_count"] == 1


def test_an_importance_matrix_of_a_file_is_named_in_the_output(tmp_path):
    model = write_model(tmp_path / "in.gguf")
    write_imatrix(tmp_path / "i.gguf", importances(model))
    rq.convert(model, tmp_path / "out.gguf", "Q8_0", imatrix=tmp_path / "i.gguf")
    assert rq.open(tmp_path / "out.gguf").metadata["quantize.imatrix.file"] == str(tmp_path / "i.gguf")[:127]
    rq.convert(model, tmp_path / "out.gguf", "Q8_0", imatrix=importances(model))
    assert "quantize.imatrix.file" not in rq.open(tmp_path / "out.gguf").metadata


@pytest.mark.parametrize("name", ["Q8_0", "F32", "COPY", "F16"])
@pytest.mark.parametrize("where", ["matrix", "vector"])
def test_a_number_that_is_not_finite_is_an_error_with_its_index(tmp_path, name, where, monkeypatch):
    monkeypatch.setattr("refquant.conversion.rows._WEIGHTS_AT_ONCE", 300)
    arrays = {"a.weight": np.zeros((5, 256), np.float32), "b": np.zeros(64, np.float32)}
    arrays["a.weight" if where == "matrix" else "b"].flat[-3] = np.inf
    model = write_model(tmp_path / "in.gguf", None, arrays)
    with pytest.raises(NonFiniteError, match=r"\(4, 253\)" if where == "matrix" else r"\(61,\)"):
        rq.convert(model, tmp_path / "out.gguf", name)
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_a_scale_that_overflows_is_an_error_with_the_index_in_the_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr("refquant.conversion.rows._WEIGHTS_AT_ONCE", 300)
    arrays = {"a.weight": np.zeros((5, 256), np.float32)}
    arrays["a.weight"][3, 40] = 1e30
    model = write_model(tmp_path / "in.gguf", None, arrays)
    with pytest.raises(ScaleOverflowError, match=r"a\.weight.*\(3, 32\)"):
        rq.convert(model, tmp_path / "out.gguf", "Q8_0")
    with pytest.raises(ScaleOverflowError, match=r"a\.weight.*\(3, 40\)"):
        rq.convert(model, tmp_path / "out.gguf", "F16")


def test_tables_of_integers_are_copied(tmp_path):
    arrays = {"a.weight": np.ones((2, 4), np.float32), "table": np.arange(8, dtype=np.int32)}
    model = write_model(tmp_path / "in.gguf", None, arrays)
    rq.convert(model, tmp_path / "out.gguf", "F16")
    assert (rq.open(tmp_path / "out.gguf")["table"].numpy() == np.arange(8)).all()


def split(tmp_path, model):
    """The model in three parts, whose tensors are not in llama-quantize's order."""
    sources = [TensorSource(t.name, t.dtype, t.shape, t.numpy) for t in model.values()]
    write_split(tmp_path / "in", model.typed_metadata, [sources[:5], sources[5:9], sources[9:]])
    return part_path(tmp_path / "in", 1, 3)


def test_parts_are_kept_with_their_tensors_or_joined(tmp_path):
    model = write_model(tmp_path / "one.gguf")
    first = split(tmp_path, model)
    rq.convert(model, tmp_path / "plain.gguf", "Q8_0")
    rq.convert(first, tmp_path / "joined.gguf", "Q8_0")
    assert (tmp_path / "joined.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    rq.convert(first, tmp_path / "kept.gguf", "Q8_0", keep_split=True)
    kept = rq.open(part_path(tmp_path / "kept", 2, 3))
    assert list(kept) == list(model)
    assert kept.metadata["general.file_type"] == 7
    assert [len({t.path for t in kept.values()}), not (tmp_path / "kept.gguf").exists()] == [3, True]
    plain = rq.open(tmp_path / "plain.gguf")
    assert all(kept[name].raw().tobytes() == plain[name].raw().tobytes() for name in plain)
    rq.convert(model, tmp_path / "single.gguf", "Q8_0", keep_split=True)
    single = rq.open(part_path(tmp_path / "single", 1, 1))
    assert list(single) == list(model)


def test_the_input_is_not_overwritten(tmp_path):
    model = write_model(tmp_path / "in.gguf")
    before = (tmp_path / "in.gguf").read_bytes()
    os.link(tmp_path / "in.gguf", tmp_path / "same.gguf")
    for target in ("in.gguf", "same.gguf"):
        with pytest.raises(RefquantError, match="the input itself"):
            rq.convert(model, tmp_path / target, "Q8_0")
    assert (tmp_path / "in.gguf").read_bytes() == before


def test_what_is_there_stays_until_the_new_file_is_complete(tmp_path):
    good, bad = write_model(tmp_path / "good.gguf"), np.ones((2, 4), np.float32)
    rq.convert(good, tmp_path / "out.gguf", "Q8_0")
    before = (tmp_path / "out.gguf").read_bytes()
    bad[1, 1] = np.nan
    model = write_model(tmp_path / "bad.gguf", None, {"a.weight": np.ones((2, 4), np.float32), "z.weight": bad})
    with pytest.raises(NonFiniteError):
        rq.convert(model, tmp_path / "out.gguf", "F16")
    assert (tmp_path / "out.gguf").read_bytes() == before


def test_progress_counts_every_weight_once(tmp_path, monkeypatch):
    monkeypatch.setattr("refquant.conversion.rows._WEIGHTS_AT_ONCE", 1000)
    model = write_model(tmp_path / "in.gguf")
    told = []
    decided = rq.convert(model, tmp_path / "out.gguf", "Q8_0", on_progress=lambda *what: told.append(what))
    assert told[-1] == (decided.tensors[-1].name, decided.size, decided.size)
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert len(told) > len(decided.tensors)


def test_coverage_names_what_an_importance_matrix_does_not_know(tmp_path):
    model = write_model(tmp_path / "in.gguf", layers=1, experts=4)
    imatrix = importances(model)
    del imatrix.entries["blk.0.attn_v.weight"]
    imatrix.entries["blk.0.ffn_up_exps.weight"].counts[1:] = 0
    imatrix.entries["other.weight"] = imatrix.entries["blk.0.attn_q.weight"]
    decided = rq.convert(model, tmp_path / "out.gguf", "Q8_0", imatrix=imatrix)
    found = coverage(decided, imatrix)
    assert (found.tensors, found.unused) == (9, 1)
    assert set(found.missing) == {"blk.0.attn_v.weight", "output.weight", "token_embd.weight"}
    assert found.partial == (("blk.0.ffn_up_exps.weight", 1, 4),)


def test_memory_is_bounded_by_the_largest_tensor(tmp_path):
    arrays = {f"blk.{i}.ffn_up.weight": np.ones((256, 4096), np.float32) for i in range(12)}
    write_model(tmp_path / "in.gguf", facts(layers=12), arrays)
    model = rq.open(tmp_path / "in.gguf")
    rq.convert(model, tmp_path / "warm.gguf", "Q8_0")
    tracemalloc.start()
    rq.convert(model, tmp_path / "out.gguf", "Q8_0")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * arrays["blk.0.ffn_up.weight"].nbytes  # of twelve


def test_a_terminated_run_leaves_nothing(tmp_path):
    write_model(tmp_path / "in.gguf")
    program = (
        "import os, signal, sys, refquant as rq\n"
        "rq.convert(sys.argv[1], sys.argv[2], 'Q8_0', on_progress=lambda *_: os.kill(os.getpid(), signal.SIGTERM))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "in.gguf"), str(tmp_path / "out.gguf")]
    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def test_what_cannot_be_done_is_refused(tmp_path):
    model = write_model(tmp_path / "in.gguf")
    with pytest.raises(UnknownNameError, match="did you mean"):
        rq.convert(model, tmp_path / "out.gguf", "Q4_K_X")
    with pytest.raises(RefquantError, match="threads 0"):
        rq.convert(model, tmp_path / "out.gguf", "Q8_0", threads=0)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(RefquantError, match="not a model in GGUF"):
        rq.convert(tmp_path / "model.safetensors", tmp_path / "out.gguf", "Q8_0")
