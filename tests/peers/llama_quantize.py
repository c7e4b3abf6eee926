"""llama-quantize as an oracle: its files, and how ours are compared with them."""

import re
import subprocess

import numpy as np

from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.imatrix import Imatrix, ImatrixEntry, write_imatrix
from refquant.conversion import convert
from refquant.conversion.roles import role_of
from tests.peers.llama_cpp import tool

PLANNED = re.compile(r"\[ *\d+/ *\d+\] (\S+)\s+- \[.*?\], type = +(\S+), size = .*? MiB(?: ->.*?\((\S+)\))?")


def llama_quantize(*arguments, expected=0):
    command = [str(argument) for argument in (tool("llama-quantize"), *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def planned_types(model, name, *options):
    """What --dry-run says, in order."""
    command = [str(tool("llama-quantize")), "--dry-run", *options, str(model), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [(row[1], (row[3] or row[2]).upper()) for row in PLANNED.finditer(done.stdout + done.stderr)]


def assert_same_file(ours, theirs):
    """Byte for byte; where not, say which tensor or key it is."""
    a, b = ours.read_bytes(), theirs.read_bytes()
    if a == b:
        return
    x, y = open_checkpoint(ours), open_checkpoint(theirs)
    assert list(x) == list(y)
    assert {n: (t.dtype, t.shape) for n, t in x.items()} == {n: (t.dtype, t.shape) for n, t in y.items()}
    differing = {n: int(np.count_nonzero(x[n].raw() != y[n].raw())) for n in x if (x[n].raw() != y[n].raw()).any()}
    assert not differing, f"bytes that differ, by tensor: {differing}"
    assert list(x.metadata) == list(y.metadata)
    assert {k: repr(v) for k, v in x.metadata.items()} == {k: repr(v) for k, v in y.metadata.items()}
    raise AssertionError("the headers differ")


def compare(tmp_path, model, name, imatrix=None, arguments=(), options=None, threads=1):
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    given = ["--imatrix", imatrix] if imatrix else []
    llama_quantize(*given, *arguments, model, theirs, name, 1)
    convert(model, ours, name, imatrix=imatrix, options=options, threads=threads)
    assert_same_file(ours, theirs)


def random_imatrix(path, model, without=()):
    """Importances for every matrix but the embedding, with some columns and one expert that have seen nothing."""
    draw, entries = np.random.default_rng(7), {}
    for name, tensor in open_checkpoint(model).items():
        if len(tensor.shape) < 2 or role_of(name) == "token_embd" or any(part in name for part in without):
            continue
        matrices = tensor.shape[0] if len(tensor.shape) > 2 else 1
        sums = (draw.standard_normal((matrices, tensor.shape[-1])) ** 2 * 300).astype(np.float32)
        sums[:, ::37] = 0
        counts = draw.integers(1, 500, matrices)
        counts[matrices // 2 :][: matrices - 1] *= draw.integers(0, 2)
        entries[name] = ImatrixEntry(sums, counts)
    write_imatrix(path, Imatrix(entries, ("text.txt",), 3, 512))
    return path
