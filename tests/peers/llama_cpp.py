"""llama.cpp as an oracle: its sources from the registry's `llama-cpp-python`, built once with contraction off.

`folder()` is the build, `source()` the tree it was built from, `tool("llama-quantize")` a program of it, and
`ggml()` ggml's reference through ctypes. The build takes some minutes on two cores and is kept in
`$REFQUANT_CACHE`, or in the user's cache folder. `python -m tests.peers.llama_cpp` makes it and prints where it is.
"""

import ctypes
import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

PACKAGE = "llama-cpp-python==0.3.36"
TREE = "llama_cpp_python-0.3.36"
TARGETS = (
    "ggml-base",
    "llama-quantize",
    "llama-imatrix",
    "llama-perplexity",
    "llama-gguf-split",
    "llama-tokenize",
    "test-gguf",
)
# ggml-base is the reference: plain C, no vector extensions, no contraction. The CPU backend, which only the programs
# that run models use, may have AVX2.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "CMAKE_C_FLAGS": "-ffp-contract=off",
    "CMAKE_CXX_FLAGS": "-ffp-contract=off",
    "CMAKE_C_FLAGS_RELEASE": "-O2 -DNDEBUG",
    "CMAKE_CXX_FLAGS_RELEASE": "-O1 -DNDEBUG",
    "BUILD_SHARED_LIBS": "ON",
    "GGML_NATIVE": "OFF",
    "GGML_SSE42": "ON",
    "GGML_AVX": "ON",
    "GGML_AVX2": "ON",
    "GGML_FMA": "ON",
    "GGML_F16C": "ON",
    "GGML_BMI2": "ON",
    "GGML_OPENMP": "OFF",
    "GGML_LLAMAFILE": "OFF",
    "LLAMA_BUILD_TESTS": "ON",
    "LLAMA_BUILD_TOOLS": "ON",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_CURL": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def source() -> Path:
    """The tree of llama.cpp, with its `models/ggml-vocab-*`, its tests and its converter."""
    return folder().parent / TREE / "vendor" / "llama.cpp"


def tool(name: str) -> Path:
    """A program of the build."""
    return folder() / "bin" / name


@cache
def folder() -> Path:
    """The build folder; made on the first call."""
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / "lock"):  # several test processes may come at once
        if not (home / "built").exists():
            _build(home)
            (home / "built").touch()
    return home / "build"


@cache
def ggml() -> ctypes.CDLL:
    """libggml-base: `quantize_row_*_ref`, `quantize_*`, `dequantize_row_*`, `ggml_quantize_chunk`."""
    library = ctypes.CDLL(str(folder() / "bin" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return library


def quantize_chunk(type_id: int, w: np.ndarray, row_bytes: int, imatrix: np.ndarray | None = None) -> np.ndarray:
    """ggml's bytes, uint8 (rows, row_bytes), for float32 rows (rows, n) and an importance of (n,)."""
    w = np.ascontiguousarray(w, np.float32)
    out = np.zeros((len(w), row_bytes), np.uint8)
    weights = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
    written = ggml().ggml_quantize_chunk(
        type_id, w.ctypes.data, out.ctypes.data, 0, *w.shape, None if weights is None else weights.ctypes.data
    )
    assert written == out.nbytes, (written, out.nbytes)
    return out


def dequantize_row(name: str, blocks: np.ndarray, size: int) -> np.ndarray:
    """The float32 (size,) that `dequantize_row_<name>` (ggml's spelling, `q4_K`) makes of bytes."""
    blocks = np.ascontiguousarray(blocks, np.uint8)
    out = np.empty(size, np.float32)
    function = getattr(ggml(), f"dequantize_row_{name}")
    function.restype = None
    function(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(size))
    return out


def _home() -> Path:
    kept = os.environ.get("REFQUANT_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "refquant"
    )
    return Path(kept) / "llama.cpp"


@contextmanager
def _locked(path: Path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(home: Path) -> None:
    tree = home / TREE / "vendor" / "llama.cpp"
    if not tree.exists():
        _download(home)
    cmake, ninja = _program("cmake"), _program("ninja")
    build = home / "build"
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    _run(
        [cmake, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-S", tree, "-B", build, *options],
        home / "configure.log",
    )
    _run([ninja, "-C", build, *TARGETS], home / "build.log")


def _download(home: Path) -> None:
    archive = home / f"{TREE}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
        _run([*command, "-d", home, PACKAGE], home / "download.log")
    partial = home / "unpacking"
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(partial, filter="data")
    (partial / TREE).rename(home / TREE)
    partial.rmdir()


def _program(name: str) -> str:
    """A build tool: the one that the peers extra installs beside Python, or the system's."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not there: pip install 'refquant[peers]' brings it")
    return found


def _run(command: list[object], log: Path) -> None:
    with log.open("w") as file:
        code = subprocess.run(
            [str(word) for word in command], stdout=file, stderr=subprocess.STDOUT, check=False
        ).returncode
    if code:
        raise RuntimeError(f"{command[0]} failed with {code}; the end of {log}:\n" + log.read_text()[-2000:])


if __name__ == "__main__":
    print(folder())
