"""`refquant quantize` against llama-quantize: whole files, to the byte."""

import re
import subprocess
from functools import cache

import gguf
import pytest

from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.imatrix import read_imatrix
from refquant.conversion import FILE_TYPES, ImatrixSource, Options, Override, TensorTypeRule, convert, plan
from refquant.conversion.patterns import read_tensor_types
from refquant.errors import RefquantError
from tests.peers.llama_cpp import tool
from tests.peers.llama_quantize import assert_same_file, compare, llama_quantize, random_imatrix
from tests.peers.random_gguf import Shape, write
from tests.peers.smollm2 import gguf_path

pytestmark = pytest.mark.peers

NAMES = [kind.name for kind in FILE_TYPES]

# One block each: which tensor gets which type is a matter of test_llama_quantize_types.py.
SMALL = {
    "grouped and tied": Shape(layers=1, ff=256, kv_heads=2, vocab=48, tied=True),
    "8 experts": Shape(layers=1, ff=128, experts=8, vocab=48, heads=4, kv_heads=4),
    "rows of 160": Shape(layers=1, embd=160, ff=288, heads=2, kv_heads=1, vocab=50),
}
QUICK = ["Q4_0", "Q5_1", "Q8_0", "Q4_K_M", "Q6_K", "MXFP4_MOE", "TQ2_0", "F16", "BF16", "F32", "COPY"]


OF_FOUR_LAYERS = Shape(layers=4, ff=256, vocab=48)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Random models of a shape, made when they are asked for."""
    return cache(lambda shape, dtype="F32": write(tmp_path_factory.mktemp("model") / "model.gguf", shape, dtype))


@pytest.mark.parametrize("name", QUICK)
def test_a_small_model_is_the_file_that_llama_quantize_writes(models, tmp_path, name):
    compare(tmp_path, models(SMALL["grouped and tied"]), name)


def all_file_types():
    """Every file type with and without importances for each shape, but for Q1_0 where its blocks divide no row."""
    return [
        pytest.param(name, shape, weighted, id=f"{name}, {shape}, {'with' if weighted else 'without'} imatrix")
        for name in NAMES
        for shape in SMALL
        for weighted in (False, True)
        if (name, shape) != ("Q1_0", "rows of 160")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "weighted"), all_file_types())
def test_every_file_type_of_small_models_is_the_file_that_llama_quantize_writes(
    models, tmp_path, name, shape, weighted
):
    model = models(SMALL[shape])
    if not weighted and plan(open_checkpoint(model), name).needing_imatrix:
        llama_quantize(model, tmp_path / "theirs.gguf", name, 1, expected=1)
        with pytest.raises(RefquantError, match="importance matrix"):
            convert(model, tmp_path / "ours.gguf", name)
        assert not (tmp_path / "ours.gguf").exists()
    else:
        compare(tmp_path, model, name, random_imatrix(tmp_path / "i.gguf", model) if weighted else None)


def test_half_precision_input_gives_the_same_file(models, tmp_path):
    shape = Shape(layers=2, ff=256, vocab=48)
    for name in ("Q4_0", "Q4_K_S", "F32", "COPY"):
        compare(tmp_path, models(shape, "F16"), name)


def test_neither_threads_nor_slabs_change_a_byte(models, tmp_path, monkeypatch):
    monkeypatch.setattr("refquant.conversion.rows._WEIGHTS_AT_ONCE", 5000)
    model = models(Shape(layers=1, ff=64, experts=3, vocab=48, heads=4, kv_heads=1))
    compare(tmp_path, model, "Q4_K_M", random_imatrix(tmp_path / "i.gguf", model), threads=3)


OPTIONS = {
    "pure": (["--pure"], Options(pure=True)),
    "leave output": (["--leave-output-tensor"], Options(leave_output_tensor=True)),
    "output and embedding": (
        ["--output-tensor-type", "q5_1", "--token-embedding-type", "f16"],
        Options(output_tensor_type="Q5_1", token_embedding_type="F16"),
    ),
    "patterns": (
        [
            "--tensor-type",
            "ATTN_.*=q8_0",
            "--tensor-type",
            r"blk\.[0-1]\.ffn_(up|gate)=bf16",
            "--tensor-type",
            "ffn=tq2_0",
        ],
        Options(
            tensor_types=(
                TensorTypeRule.parse("ATTN_.*=q8_0"),
                TensorTypeRule.parse(r"blk\.[0-1]\.ffn_(up|gate)=bf16"),
                TensorTypeRule.parse("ffn=tq2_0"),
            )
        ),
    ),
    "an anchored class": (
        ["--tensor-type", r"^blk.[[:digit:]]+.attn_[kv]\D*t$=q5_0"],
        Options(tensor_types=(TensorTypeRule.parse(r"^blk.[[:digit:]]+.attn_[kv]\D*t$=q5_0"),)),
    ),
    "pruned": (["--prune-layers", "0,2"], Options(prune_layers=(0, 2))),
    "pruned inside": (["--prune-layers", "2"], Options(prune_layers=(2,))),
    "overrides": (
        [
            *("--override-kv", "general.name=str:another"),
            *("--override-kv", "llama.expert_used_count=int:0"),
            *("--override-kv", "new.float=float:0.1"),
            *("--override-kv", "new.flag=bool:true"),
        ],
        Options(
            overrides=tuple(
                Override.parse(text)
                for text in (
                    "general.name=str:another",
                    "llama.expert_used_count=int:0",
                    "new.float=float:0.1",
                    "new.flag=bool:true",
                )
            )
        ),
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_give_the_same_file(models, tmp_path, option):
    arguments, options = OPTIONS[option]
    model = models(OF_FOUR_LAYERS)
    imatrix = random_imatrix(tmp_path / "i.gguf", model) if "prune" in option else None
    compare(tmp_path, model, "Q4_0", imatrix, arguments, options)


def test_a_file_of_tensor_types_gives_the_same_file(models, tmp_path):
    (tmp_path / "types.txt").write_text("ffn_down=q8_0 attn_v=q5_1\n\nattn=f16\n")
    model = models(OF_FOUR_LAYERS)
    options = Options(tensor_types=read_tensor_types(tmp_path / "types.txt"))
    compare(tmp_path, model, "Q4_0", None, ["--tensor-type-file", tmp_path / "types.txt"], options)


@pytest.mark.parametrize(("option", "argument"), [("include", "attn"), ("exclude", "ffn_down")])
def test_a_part_of_an_importance_matrix_gives_the_same_file(models, tmp_path, option, argument):
    model = models(OF_FOUR_LAYERS)
    imatrix = random_imatrix(tmp_path / "i.gguf", model)
    chosen = ImatrixSource(read_imatrix(imatrix).selected(**{option: (argument,)}), str(imatrix))
    llama_quantize(f"--{option}-weights", argument, "--imatrix", imatrix, model, tmp_path / "theirs.gguf", "Q4_0", 1)
    convert(model, tmp_path / "ours.gguf", "Q4_0", imatrix=chosen)
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_the_parts_of_a_split_model_are_kept_or_joined(models, tmp_path):
    model = models(OF_FOUR_LAYERS)
    split = [tool("llama-gguf-split"), "--split", "--split-max-tensors", "9", model, tmp_path / "in"]
    subprocess.run([str(word) for word in split], check=True, capture_output=True)
    first = next(tmp_path.glob("in-00001-of-*.gguf"))
    llama_quantize(first, tmp_path / "joined.gguf", "Q4_K_M", 1)
    convert(first, tmp_path / "ours.gguf", "Q4_K_M")
    assert_same_file(tmp_path / "ours.gguf", tmp_path / "joined.gguf")
    llama_quantize("--keep-split", first, tmp_path / "theirs.gguf", "Q4_K_M", 1)
    convert(first, tmp_path / "kept.gguf", "Q4_K_M", keep_split=True)
    parts = sorted(tmp_path.glob("theirs-*.gguf"))
    assert len(parts) == len(list(tmp_path.glob("kept-*.gguf"))) > 3
    for part in parts:
        reader, other = (gguf.GGUFReader(tmp_path / part.name.replace("theirs", stem)) for stem in ("theirs", "kept"))
        assert [t.name for t in reader.tensors] == [t.name for t in other.tensors]
        assert all((a.data == b.data).all() for a, b in zip(reader.tensors, other.tensors, strict=True))
        fields = [{k: f.contents() for k, f in r.fields.items() if k[:5] != "GGUF."} for r in (reader, other)]
        assert fields[0] == fields[1]  # the order of the three split keys is that of llama-gguf-split


def test_what_llama_quantize_refuses_is_refused(models, tmp_path):
    small, out = models(SMALL["grouped and tied"]), tmp_path / "out.gguf"
    convert(small, tmp_path / "q.gguf", "Q8_0")
    llama_quantize(tmp_path / "q.gguf", out, "Q4_0", expected=1)
    with pytest.raises(RefquantError, match="quantized already"):
        convert(tmp_path / "q.gguf", tmp_path / "ours.gguf", "Q4_0")
    imatrix = random_imatrix(tmp_path / "i.gguf", models(Shape(layers=3, ff=512, vocab=48)))
    llama_quantize("--imatrix", imatrix, small, out, "Q4_0", expected=1)
    with pytest.raises(RefquantError, match="512 values for it"):
        convert(small, tmp_path / "ours.gguf", "Q4_0", imatrix=imatrix)
    partial = random_imatrix(tmp_path / "p.gguf", small, without=("blk.0.attn_k.",))
    llama_quantize("--imatrix", partial, small, out, "IQ2_S", expected=1)
    with pytest.raises(RefquantError, match=r"blk\.0\.attn_k.*no data for it"):
        convert(small, tmp_path / "ours.gguf", "IQ2_S", imatrix=partial)
    assert not (tmp_path / "ours.gguf").exists()


def cut_smollm2(path, layers=2, rows=512):
    """The first layers of SmolLM2, with the first rows of its embedding; types as they are."""
    reader = gguf.GGUFReader(gguf_path())
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {name: reader.fields[f"llama.{name}"].contents() for name in NUMBERS_OF_SMOLLM2}
    for name, value in numbers.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"llama.{name}", layers if name == "block_count" else value)
    for tensor in reader.tensors:
        block = re.match(r"blk\.(\d+)\.", tensor.name)
        if block is None or int(block[1]) < layers:
            data = tensor.data[:rows] if tensor.name == "token_embd.weight" else tensor.data
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


NUMBERS_OF_SMOLLM2 = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "vocab_size",
)


@pytest.fixture(scope="session")
def cut(tmp_path_factory):
    return cut_smollm2(tmp_path_factory.mktemp("cut") / "cut.gguf", layers=1)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["without imatrix", "with imatrix"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "Q1_0"])  # 128 divides no row of 576
def test_a_layer_of_smollm2_in_every_file_type_is_the_file_that_llama_quantize_writes(cut, tmp_path, name, weighted):
    if not weighted and plan(open_checkpoint(cut), name).needing_imatrix:
        with pytest.raises(RefquantError, match=r"importance matrix|quantized already"):
            convert(cut, tmp_path / "ours.gguf", name)
    else:
        imatrix = random_imatrix(tmp_path / "i.gguf", cut) if weighted else None
        compare(tmp_path, cut, name, imatrix, ["--allow-requantize"], Options(allow_requantize=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["COPY", "F32", "Q4_0", "Q8_0", "Q4_K_M"])
def test_the_whole_of_smollm2_is_the_file_that_llama_quantize_writes(tmp_path, name):
    compare(tmp_path, gguf_path(), name, None, ["--allow-requantize"], Options(allow_requantize=True))
