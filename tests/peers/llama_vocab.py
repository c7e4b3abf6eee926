"""llama.cpp's vocabularies as an oracle, through ctypes: its ids of a text, and the bytes of its tokens."""

import ctypes
from functools import cache
from pathlib import Path

from tests.peers import llama_cpp


class _ModelParams(ctypes.Structure):
    """`struct llama_model_params` of include/llama.h, which is passed by value."""

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_SILENT = _LOG(lambda level, text, user: None)

# Bits of `enum llama_token_attr`.
UNKNOWN, UNUSED, NORMAL, CONTROL, USER_DEFINED, BYTE = (1 << i for i in range(6))


class LlamaVocab:
    """The vocabulary of a GGUF file as llama.cpp reads it."""

    def __init__(self, path: Path) -> None:
        library = _library()
        params = library.llama_model_default_params()
        params.vocab_only = True
        self._model = library.llama_model_load_from_file(bytes(path), params)
        if not self._model:
            raise ValueError(f"llama.cpp does not load {path}")
        self._vocab = library.llama_model_get_vocab(self._model)
        self._buffer = ctypes.create_string_buffer(1 << 16)

    def close(self) -> None:
        _library().llama_model_free(self._model)

    def __len__(self) -> int:
        return _library().llama_vocab_n_tokens(self._vocab)

    def encode(self, text: str, *, special: bool = True, whole: bool = False) -> list[int]:
        """The ids; `special`: special tokens are parsed; `whole`: with BOS and EOS where the vocabulary adds them."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) * 3 + 8))()
        count = _library().llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), whole, special)
        assert count >= 0, count
        return ids[:count]

    def piece(self, token: int, *, special: bool = False) -> bytes:
        count = _library().llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
        assert count >= 0, count
        return ctypes.string_at(self._buffer, count)

    def decode(self, ids: list[int]) -> bytes:
        """The bytes of ids, special tokens left out."""
        array = (ctypes.c_int32 * len(ids))(*ids)
        buffer = ctypes.create_string_buffer(max(64, 256 * len(ids)))
        count = _library().llama_detokenize(self._vocab, array, len(ids), buffer, len(buffer), False, False)
        assert count >= 0, count
        return buffer.raw[:count]

    def ends(self) -> set[int]:
        return {i for i in range(len(self)) if _library().llama_vocab_is_eog(self._vocab, i)}

    def attributes(self) -> list[int]:
        return [_library().llama_vocab_get_attr(self._vocab, i) for i in range(len(self))]

    @property
    def bos(self) -> int:
        return _library().llama_vocab_bos(self._vocab)

    @property
    def eos(self) -> int:
        return _library().llama_vocab_eos(self._vocab)

    @property
    def adds_bos(self) -> bool:
        return _library().llama_vocab_get_add_bos(self._vocab)

    @property
    def adds_eos(self) -> bool:
        return _library().llama_vocab_get_add_eos(self._vocab)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(llama_cpp.folder() / "bin" / "libllama.so"))
    pointer, integer, boolean, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool, ctypes.c_char_p
    ids = ctypes.POINTER(ctypes.c_int32)
    signatures = {
        "llama_model_default_params": (_ModelParams, []),
        "llama_model_load_from_file": (pointer, [text, _ModelParams]),
        "llama_model_free": (None, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (integer, [pointer]),
        "llama_vocab_bos": (integer, [pointer]),
        "llama_vocab_eos": (integer, [pointer]),
        "llama_vocab_get_add_bos": (boolean, [pointer]),
        "llama_vocab_get_add_eos": (boolean, [pointer]),
        "llama_vocab_is_eog": (boolean, [pointer, integer]),
        "llama_vocab_get_attr": (ctypes.c_int, [pointer, integer]),
        "llama_tokenize": (integer, [pointer, text, integer, ids, integer, boolean, boolean]),
        "llama_token_to_piece": (integer, [pointer, integer, text, integer, integer, boolean]),
        "llama_detokenize": (integer, [pointer, ids, integer, text, integer, boolean, boolean]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_SILENT, None)
    library.llama_backend_init()
    return library
