"""ggml's own GGUF reader, in a process of its own: an assertion in it ends that process and not the tests.

`Peer().load(content, data=…)` is what `gguf_init_from_buffer` makes of a file: a description, None where it refuses,
"crashed" where it ends the process. `python -m tests.peers.ggml_gguf` is that process.
"""

import ctypes
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CRASHED = "crashed"


class Peer:
    """A process that reads files; started again when one of them has ended it."""

    def __init__(self) -> None:
        self.crashes = 0
        self._process: subprocess.Popen[bytes] | None = None

    def load(self, content: bytes, data: bool = False) -> object:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                env=os.environ | {"GGML_NO_BACKTRACE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        process = self._process
        process.stdin.write(struct.pack("<?Q", data, len(content)) + content)
        process.stdin.flush()
        line = process.stdout.readline()
        if line:
            return json.loads(line)
        self.close()
        self.crashes += 1
        return CRASHED

    def close(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.stdin.close()
            process.stdout.close()
            process.wait()


class InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p))]


def library() -> ctypes.CDLL:
    from tests.peers.llama_cpp import ggml

    lib, pointer, i64, text, size = ggml(), ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t
    signatures = {
        "gguf_init_from_buffer": (pointer, [text, size, InitParams]),
        "gguf_init_from_file": (pointer, [text, InitParams]),
        "gguf_free": (None, [pointer]),
        "ggml_free": (None, [pointer]),
        "gguf_get_version": (ctypes.c_uint32, [pointer]),
        "gguf_get_alignment": (size, [pointer]),
        "gguf_get_data_offset": (size, [pointer]),
        "gguf_get_n_kv": (i64, [pointer]),
        "gguf_get_key": (text, [pointer, i64]),
        "gguf_get_kv_type": (ctypes.c_int, [pointer, i64]),
        "gguf_get_arr_type": (ctypes.c_int, [pointer, i64]),
        "gguf_get_val_str": (text, [pointer, i64]),
        "gguf_get_val_data": (pointer, [pointer, i64]),
        "gguf_get_arr_n": (size, [pointer, i64]),
        "gguf_get_arr_data": (pointer, [pointer, i64]),
        "gguf_get_arr_str": (text, [pointer, i64, size]),
        "gguf_get_n_tensors": (i64, [pointer]),
        "gguf_get_tensor_offset": (size, [pointer, i64]),
        "gguf_get_tensor_name": (text, [pointer, i64]),
        "gguf_get_tensor_ne": (ctypes.POINTER(i64), [pointer, i64]),
        "gguf_get_tensor_type": (ctypes.c_int, [pointer, i64]),
        "gguf_get_meta_size": (size, [pointer]),
        "gguf_get_meta_data": (None, [pointer, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def metadata_bytes(path: Path) -> bytes:
    """The header that ggml writes again of a file that it has read."""
    lib = library()
    context = lib.gguf_init_from_file(str(path).encode(), InitParams(True, None))
    assert context, path
    out = ctypes.create_string_buffer(lib.gguf_get_meta_size(context))
    lib.gguf_get_meta_data(context, out)
    lib.gguf_free(context)
    return out.raw


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STR, ARR, BOOL = 8, 9, 7


def described(lib: ctypes.CDLL, context: int) -> dict[str, object]:
    """Everything that the file says: numbers as their bytes in hexadecimal, strings up to their first NUL."""
    return {
        "version": lib.gguf_get_version(context),
        "alignment": lib.gguf_get_alignment(context),
        "data_start": lib.gguf_get_data_offset(context),
        "metadata": [_pair(lib, context, i) for i in range(lib.gguf_get_n_kv(context))],
        "tensors": [_tensor(lib, context, i) for i in range(lib.gguf_get_n_tensors(context))],
    }


def _pair(lib: ctypes.CDLL, context: int, i: int) -> list[object]:
    key = lib.gguf_get_key(context, i).hex()
    kind = lib.gguf_get_kv_type(context, i)
    if kind != ARR:
        value = lib.gguf_get_val_str(context, i) if kind == STR else _raw(lib.gguf_get_val_data(context, i), kind, 1)
        return [key, kind, value.hex()]
    element, count = lib.gguf_get_arr_type(context, i), lib.gguf_get_arr_n(context, i)
    if element == STR:
        return [key, kind, element, [lib.gguf_get_arr_str(context, i, j).hex() for j in range(count)]]
    return [key, kind, element, _raw(lib.gguf_get_arr_data(context, i), element, count).hex()]


def _raw(address: int, kind: int, count: int) -> bytes:
    raw = ctypes.string_at(address, SIZES[kind] * count) if count else b""
    return bytes(byte != 0 for byte in raw) if kind == BOOL else raw


def _tensor(lib: ctypes.CDLL, context: int, i: int) -> list[object]:
    return [
        lib.gguf_get_tensor_name(context, i).hex(),
        lib.gguf_get_tensor_type(context, i),
        lib.gguf_get_tensor_ne(context, i)[:4],
        lib.gguf_get_tensor_offset(context, i),
    ]


def serve() -> None:
    """Read files from standard input, answer with one line of JSON each."""
    lib = library()
    while head := sys.stdin.buffer.read(9):
        data, length = struct.unpack("<?Q", head)
        content = sys.stdin.buffer.read(length)
        tensors = ctypes.c_void_p()
        context = lib.gguf_init_from_buffer(
            content, length, InitParams(False, ctypes.pointer(tensors) if data else None)
        )
        answer = described(lib, context) if context else None
        if context:
            lib.gguf_free(context)
            if tensors:
                lib.ggml_free(tensors)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
