"""The type of every tensor, against `llama-quantize --dry-run` and llama.cpp's own snapshots."""

import re
import subprocess
from functools import cache

import pytest

from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.gguf_values import string, u32
from refquant.conversion import FILE_TYPES, plan
from refquant.conversion.file_types import ALIASES
from refquant.errors import RefquantError
from tests.conversion.frozen import PATH
from tests.peers import frozen_plans
from tests.peers.llama_cpp import source, tool
from tests.peers.llama_quantize import planned_types, random_imatrix
from tests.peers.random_gguf import Shape, write

pytestmark = pytest.mark.peers

NAMES = [kind.name for kind in FILE_TYPES]

# Of 80 layers, only those that a rule for 70B models changes, and a few that none does.
OF_70B = ["Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "Q5_K_M", "Q4_0", "IQ2_S", "IQ3_M", "IQ4_XS"]

SHAPES = {
    "llama": Shape(layers=16),
    "grouped and tied": Shape(layers=9, kv_heads=2, tied=True),
    "8 experts": Shape(layers=5, kv_heads=4, experts=8, ff=256),
    "4 experts": Shape(layers=9, experts=4, ff=256),
    "falcon": Shape("falcon", layers=17, fused_qkv=True, tied=True),
    "falcon, grouped": Shape("falcon", layers=17, kv_heads=2),
    "rows of 96 and 224": Shape(embd=96, ff=224, heads=2, kv_heads=2),
    "rows of 80 and 100": Shape(embd=80, ff=100, heads=2, kv_heads=2, tied=True),
    "70B": Shape(layers=80, kv_heads=4, vocab=32, ff=256),
    "qwen2 of 80 layers": Shape("qwen2", layers=80, vocab=32, ff=256),
    "tensors of other kinds": Shape(
        extra=(
            ("blk.0.weird.weight", (3, 256)),
            ("blk.1.ssm_conv1d.weight", (4, 256)),
            ("abcde", (4, 256)),
            ("abcdef", (4, 256)),
            ("blk.2.attn_q_norm.weight", (2, 256)),
            ("one.weight", (1, 256)),
            ("per_layer_token_embd.weight", (9, 256)),
            ("blk.10.a.weight", (2, 256)),
            ("position_embd.weight", (64, 256)),
        )
    ),
}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The models of SHAPES, made when they are asked for."""
    return cache(lambda name: write(tmp_path_factory.mktemp("model") / "model.gguf", SHAPES[name]))


def test_the_file_types_are_those_that_llama_quantize_offers():
    usage = subprocess.run([str(tool("llama-quantize"))], capture_output=True, text=True, check=False).stdout
    offered = dict(reversed(row) for row in re.findall(r"^ +(\d+)  or  (\w+)", usage, re.MULTILINE))
    known = {kind.name: str(kind.number) for kind in FILE_TYPES if kind.number is not None}
    assert known | {alias: known[name] for alias, name in ALIASES.items()} == offered


@pytest.mark.parametrize("shape", SHAPES)
def test_every_file_type_gives_every_tensor_the_type_that_llama_quantize_gives(models, shape):
    model = models(shape)
    opened = open_checkpoint(model)
    for name in OF_70B if SHAPES[shape].layers == 80 else NAMES:
        expected = planned_types(model, name)
        if not expected:  # Q1_0 with rows that its blocks do not divide: llama-quantize stops, and so do we
            assert name == "Q1_0"
            with pytest.raises(RefquantError, match="blocks of 128"):
                plan(opened, name)
            continue
        assert [(tensor.name, tensor.new) for tensor in plan(opened, name).tensors] == expected, name


@pytest.mark.parametrize("shape", ["llama", "8 experts"])
@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "IQ3_XXS", "IQ4_XS", "IQ4_NL", "Q2_K_S"])
def test_the_mixes_know_whether_there_is_an_importance_matrix(models, tmp_path, name, shape):
    imatrix = random_imatrix(tmp_path / "i.gguf", models(shape))
    expected = planned_types(models(shape), name, "--imatrix", str(imatrix))
    decided = plan(open_checkpoint(models(shape)), name, has_imatrix=True)
    assert [(tensor.name, tensor.new) for tensor in decided.tensors] == expected


def test_the_frozen_plans_are_those_of_llama_quantize():
    assert PATH.read_text().splitlines() == frozen_plans.lines()


def snapshots():
    return sorted((source() / "tests" / "snapshots").glob("*.schema"))


def read_snapshot(path):
    """The numbers of the second line; by file type its base, and the tensors of another type."""
    lines = path.read_text().splitlines()
    numbers = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", lines[1])}
    sections: dict[str, tuple[str, dict[str, str]]] = {}
    for line in lines[2:]:
        if line.startswith("["):
            name, base = line[1:].split("] ")
            others = sections.setdefault(name, (base.upper(), {}))[1]
        elif line:
            tensor, kind = line.rsplit(" ", 1)
            others[tensor] = kind.upper()
    return numbers, sections


class Listed:
    """The model of a snapshot: its quantizable tensors, as far as any of its file types names them."""

    def __init__(self, path):
        numbers, self.sections = read_snapshot(path)
        arch = "llama" if path.name.startswith("meta-llama") else path.name.split("-")[0]
        self.path = path
        self.typed_metadata = {
            "general.architecture": string(arch),
            f"{arch}.block_count": u32(numbers["n_layer"]),
            f"{arch}.expert_count": u32(numbers.get("n_expert", 0)),
            f"{arch}.attention.head_count": u32(numbers["n_head"]),
            f"{arch}.attention.head_count_kv": u32(numbers["n_head_kv"]),
        }
        self.tensors = {
            name: ListedTensor(name, "F32", self.shape_of(name), path)
            for name in sorted({name for _, others in self.sections.values() for name in others})
        }

    def shape_of(self, name):
        """Q6_K says what divides the rows: where 256 does not it is Q8_0, and F16 where 32 does not. MXFP4_MOE says
        which tensors stack experts: those that it leaves at its base."""
        rows = {"Q6_K": 256, "Q8_0": 32, "F16": 2}[self.sections["Q6_K"][1].get(name, "Q6_K")]
        return (4, rows) if name in self.sections["MXFP4_MOE"][1] else (4, 4, rows)


class ListedTensor:
    def __init__(self, name, dtype, shape, path):
        self.name, self.dtype, self.shape, self.path = name, dtype, shape, path


@pytest.mark.parametrize("path", snapshots(), ids=lambda path: path.stem)
def test_the_types_are_those_of_llama_cpp_s_own_snapshots(path):
    model = Listed(path)
    assert len(model.sections) > 30
    for name, (base, others) in model.sections.items():
        decided = {tensor.name: tensor.new for tensor in plan(model, name).tensors}
        assert {n: t for n, t in decided.items() if t != base} == others, name
