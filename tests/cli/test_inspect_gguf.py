import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from refquant.checkpoints.gguf_split_writer import write_split
from refquant.checkpoints.gguf_values import ValueType, boolean, f32, f64, numbers, string, strings, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.cli import main
from tests.checkpoints.gguf_files import BIG, LITTLE, File
from tests.cli.test_inspect import HOSTILE, STEERING

TOKENS = [f"token{i}" for i in range(1000)]
METADATA = {
    "general.architecture": string("llama"),
    "general.file_type": u32(15),
    "eps": f32(1e-5),
    "on": boolean(True),
    "tokens": strings(TOKENS),
    "scores": numbers(ValueType.F32, np.arange(3)),
    "none": strings([]),
    "template": string("x" * 500),
}


def source(name, shape, dtype="F32", nbytes=None):
    size = math.prod(shape) * 4 if nbytes is None else nbytes
    return TensorSource(name, dtype, shape, lambda: np.zeros(size, np.uint8))


TENSORS = [source("norm", (64,)), source("up", (3, 256), "Q4_K", 3 * 144), source("down", (3, 64), "Q5_0", 3 * 44)]


@pytest.fixture
def model(tmp_path):
    write_gguf(tmp_path / "m.gguf", METADATA, TENSORS)
    return tmp_path / "m.gguf"


def inspect(capsys, *arguments):
    code = main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def lines(out):
    return [" ".join(line.split()) for line in out.splitlines()]


def test_metadata_is_shown_with_its_types_and_long_arrays_shortened(capsys, model):
    out = lines(inspect(capsys, model))
    assert "general.architecture str llama" in out
    assert "eps f32 9.99999975e-06" in out
    assert "on bool true" in out
    assert (
        'tokens [str] 1,000: "token0", "token1", "token2", "token3", "token4", "token5", "token6", "token7", …' in out
    )
    assert "scores [f32] 3: 0, 1, 2" in out
    assert "none [str] 0" in out
    assert f"template str {'x' * 100}… (500 characters)" in out


def test_tensors_and_types_are_listed(capsys, model):
    out = lines(inspect(capsys, model))
    assert "up Q4_K 3 × 256 432" in out
    assert "F32 1 64 32 256 31.2%" in out
    assert "Q5_0 1 192 5.5 132 16.1%" in out
    assert "total 3 1,024 6.406 820" in out


def test_declared_is_held_against_actual(capsys, model):
    assert lines(inspect(capsys, model))[-3:] == [
        "GGUF version 3, little-endian, alignment 32",
        "declared: Q4_K_M: mostly Q4_K, 4.5 bits a weight",
        "actual: 4.70 bits a weight in the matrices; 80.0 % of their weights are Q4_K",
    ]


ACTUAL = "actual: 4.70 bits a weight in the matrices"
GUESSED_Q5_0 = "declared: Q5_0, which was guessed: mostly Q5_0, 5.5 bits a weight"


@pytest.mark.parametrize(
    ("file_type", "said"),
    [
        (None, ["declared: no file type"]),
        (string("Q4_K_M"), ["declared: no file type"]),
        (u32(39), ["declared: NVFP4: mostly NVFP4, 4.5 bits a weight", f"{ACTUAL}; 0.0 % of their weights are NVFP4"]),
        (u32(1024 + 8), [GUESSED_Q5_0, f"{ACTUAL}; 20.0 % of their weights are Q5_0"]),
        (u32(5), ["declared: Q4_2", ACTUAL]),
        (u32(999), ["declared: file type 999, which llama.cpp does not know", ACTUAL]),
    ],
)
def test_other_declarations(capsys, tmp_path, file_type, said):
    write_gguf(tmp_path / "m.gguf", {} if file_type is None else {"general.file_type": file_type}, TENSORS)
    assert lines(inspect(capsys, tmp_path / "m.gguf"))[-len(said) :] == said


def test_a_file_without_matrices_has_nothing_to_hold_against(capsys, tmp_path):
    write_gguf(tmp_path / "m.gguf", {"general.file_type": u32(15)}, [source("a", (1,))])
    assert lines(inspect(capsys, tmp_path / "m.gguf"))[-1] == "actual: no matrices"


def test_json_has_types_the_start_of_arrays_and_the_declaration(capsys, model):
    document = json.loads(inspect(capsys, model, "--json"))
    assert document["files"] == ["m.gguf"]
    assert document["metadata"]["general.file_type"] == {"type": "u32", "value": 15}
    assert document["metadata"]["tokens"] == {"type": "[str]", "length": 1000, "first": TOKENS[:8]}
    assert document["metadata"]["scores"] == {"type": "[f32]", "length": 3, "first": [0, 1, 2]}
    assert document["metadata"]["template"]["value"] == "x" * 500
    assert document["gguf"] == {
        "version": 3,
        "byte_order": "little",
        "alignment": 32,
        "file_type": {
            "number": 15, "name": "Q4_K_M", "guessed": False, "base": "Q4_K", "nominal_bits": 4.5,
            "actual_bits": 8 * (432 + 132) / 960, "base_share": 0.8,
        },
    }  # fmt: skip
    assert document["tensors"][1] == {"name": "up", "dtype": "Q4_K", "shape": [3, 256], "bytes": 432, "file": "m.gguf"}


def test_json_stays_strict_when_the_file_has_nan(capsys, tmp_path):
    metadata = {"a": f64(math.nan), "b": numbers(ValueType.F32, [-math.inf, 1]), "c": numbers(ValueType.BOOL, [True])}
    write_gguf(tmp_path / "m.gguf", metadata, [])
    document = json.loads(inspect(capsys, tmp_path / "m.gguf", "--json"))
    assert [list(v.values())[1:] for v in document["metadata"].values()] == [["nan"], [2, ["-inf", 1]], [1, [True]]]
    assert document["gguf"]["file_type"] is None
    inspect(capsys, tmp_path / "m.gguf")


def test_a_split_model_is_one_whichever_part_is_named(capsys, tmp_path):
    paths = write_split(tmp_path / "m", METADATA, [[tensor] for tensor in TENSORS])
    for path in (*paths, tmp_path):
        out = lines(inspect(capsys, path))
        assert "up Q4_K 3 × 256 432 m-00002-of-00003.gguf" in out
        assert out[-2] == "declared: Q4_K_M: mostly Q4_K, 4.5 bits a weight"


def test_a_big_endian_file_is_listed_even_if_its_blocks_cannot_be_read(capsys, tmp_path):
    content = File(tensors=[BIG.tensor("t", [32], 6)], data=bytes(22), w=BIG).bytes()
    (tmp_path / "m.gguf").write_bytes(content)
    out = lines(inspect(capsys, tmp_path / "m.gguf"))
    assert "t Q5_0 32 22" in out
    assert "GGUF version 3, big-endian, alignment 32" in out


def test_it_reads_no_weights(tmp_path):
    rows = 1 << 24
    head = File([LITTLE.pair("general.file_type", 4, 7)], [LITTLE.tensor("huge", [256, rows], "Q8_0")]).bytes()
    with (tmp_path / "big.gguf").open("wb") as file:
        file.write(head)
        file.truncate(len(head) + rows * 272)
    script = (
        "import resource, sys; from refquant.cli import main; code = main(['inspect', sys.argv[1]]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, tmp_path / "big.gguf"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "100.0 % of their weights are Q8_0" in done.stdout
    assert int(done.stderr) * (1 if sys.platform == "darwin" else 1024) < 512 << 20


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_escaped(capsys, tmp_path, text):
    metadata = {text: string(text), "a": strings([text] * 3), "b": string(text + "\udcff")}
    write_gguf(tmp_path / "m.gguf", metadata, [source(text, (1,))])
    for options in ((), ("--json",)):
        assert not STEERING.search(inspect(capsys, tmp_path / "m.gguf", *options))


def test_a_broken_file_is_one_line_and_exit_code_2(capsys, tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF\3\0\0\0")
    assert main(["inspect", str(tmp_path / "m.gguf")]) == 2
    assert re.fullmatch(r"refquant: error: [^\n]+m\.gguf: byte 8: [^\n]+\n", capsys.readouterr().err)
