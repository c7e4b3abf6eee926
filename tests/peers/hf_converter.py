"""llama.cpp's convert_hf_to_gguf.py as an oracle, for folders without a tokenizer that it knows.

Its own classes run, in a process of their own because they bring a `gguf` package with them; only `set_vocab` does
nothing there, since a tokenizer whose hash the converter does not know makes it stop.
"""

import json
import subprocess
import sys
from pathlib import Path

from tests.peers.llama_cpp import source

_DRIVER = """
import json, sys
from pathlib import Path
tree, jobs = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [tree, tree + "/gguf-py"]
import gguf, torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "auto": "GUESSED"}
with torch.inference_mode():
    for folder, outtype, out in jobs:
        name = get_model_architecture(ModelBase.load_hparams(Path(folder), False), ModelType.TEXT)
        kind = get_model_class(name)
        without = type("WithoutVocab", (kind,), {"model_arch": kind.model_arch, "set_vocab": lambda self: None})
        without(Path(folder), gguf.LlamaFileType[types[outtype]], Path(out)).write()
"""


def convert(jobs: list[tuple[Path, str, Path]]) -> None:
    """Convert each (folder, outtype, GGUF to write)."""
    written = json.dumps([[str(folder), outtype, str(out)] for folder, outtype, out in jobs])
    command = [sys.executable, "-c", _DRIVER, str(source()), written]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the converter failed with {done.returncode}:\n{done.stderr[-3000:]}")


def convert_whole(folder: Path, outtype: str, out: Path) -> None:
    """The converter's own command, tokenizer and all."""
    command = [sys.executable, source() / "convert_hf_to_gguf.py", folder, "--outfile", out, "--outtype", outtype]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the converter failed with {done.returncode}:\n{done.stderr[-3000:]}")
