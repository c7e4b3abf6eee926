"""Broken safetensors files, each with what its refusal must say."""

import json
import struct

from refquant.checkpoints.safetensors_header import MAX_HEADER
from tests.checkpoints.files import entry, safetensors_bytes

GOOD = {"a": entry("F32", [2], 0), "b": entry("I8", [3], 8)}
DATA = bytes(range(11))
NONE = json.dumps(entry("U8", [0]))


def one(**fields: object) -> bytes:
    """A file of one tensor, F32 [2], with some fields changed; None leaves a field out."""
    merged = entry("F32", [2]) | fields
    return safetensors_bytes({"a": {k: v for k, v in merged.items() if v is not None}}, bytes(8))


def text(header: str, data: bytes = b"") -> bytes:
    return safetensors_bytes(header, data)


BROKEN = {
    # The length of the header.
    "an empty file": (b"", "0 bytes long; a safetensors file begins with 8 bytes"),
    "seven bytes": (bytes(7), "7 bytes long"),
    "a length and nothing else": (struct.pack("<Q", 2), "give a header of 2 bytes, but only 0 follow"),
    "an empty header": (bytes(8), "the header must begin with '{' at byte 8"),
    "a length one too long": (safetensors_bytes(GOOD, b"", 200), "but only"),
    "a length at the limit": (safetensors_bytes(GOOD, DATA, MAX_HEADER), "header of 100000000 bytes, but only"),
    "a length over the limit": (safetensors_bytes(GOOD, DATA, MAX_HEADER + 1), "the limit is 100000000"),
    "the largest length": (safetensors_bytes(GOOD, DATA, 2**64 - 1), "header of 18446744073709551615 bytes; the limit"),
    "a length that cuts the header": (
        safetensors_bytes(GOOD, DATA, 20),
        "tensor 'a': dtype: unterminated string; byte 24",
    ),
    # The text of the header.
    "no UTF-8": (
        text('{"\xe9": 1}').replace("é".encode(), b"\xe9\x80"),
        "not UTF-8: invalid continuation byte at byte 10",
    ),
    "UTF-16": (safetensors_bytes('{"a": 1}'.encode("utf-16")), "must begin with '{'"),
    "a byte order mark": (safetensors_bytes(b"\xef\xbb\xbf{}"), "must begin with '{' at byte 8; b'\\xef\\xbb\\xbf{}'"),
    "white space first": (text(" {}"), "must begin with '{'"),
    "a list": (text("[]"), "must begin with '{'"),
    "no JSON": (text("{a: 1}"), "a key of the header must be a string; byte 9 of the file is at 'a: 1}'"),
    "single quotes": (text("{'a': 1}"), "must be a string; byte 9"),
    "a comma at the end": (
        text('{"__metadata__": {},}'),
        "a key of the header must be a string; byte 28 of the file is at '}'",
    ),
    "no colon": (text('{"a" 1}'), "the header: ':' expected; byte 13"),
    "something after the end": (text("{} {}"), "the header goes on after its closing brace; byte 11"),
    "a NUL after the end": (text("{}\0"), "goes on after its closing brace; byte 10 of the file is at '\\x00'"),
    "an unfinished string": (text('{"a'), "unterminated string"),
    "a raw control character": (text('{"a\n": 1}'), "invalid control character"),
    "an unknown escape": (text('{"a\\q": 1}'), "invalid \\escape"),
    "half a surrogate pair": (text('{"\\ud800": {}}'), "half of a surrogate pair"),
    "deep lists": (text('{"a":' + "[" * 200_000), "tensor 'a': '{' expected; byte 13"),
    "deep objects": (text('{"a":' * 200_000), "unknown field 'a'"),
    "deep shapes": (text('{"a":{"shape":' + "[" * 200_000), "tensor 'a': shape[0] must be an integer"),
    # Keys.
    "a tensor twice": (text(f'{{"a": {NONE}, "a": {NONE}}}'), "the key 'a' occurs twice in the header; byte 69"),
    "a tensor twice, once escaped": (text(f'{{"a": {NONE}, "\\u0061": {NONE}}}'), "the key 'a' occurs twice"),
    "a field twice": (
        text('{"a": {"dtype": "U8", "dtype": "I8"}}'),
        "the key 'dtype' occurs twice in tensor 'a'; byte 30",
    ),
    "metadata twice": (
        text('{"__metadata__": {}, "__metadata__": {}}'),
        "the key '__metadata__' occurs twice in the header",
    ),
    "a key of the metadata twice": (
        text('{"__metadata__": {"k": "", "k": ""}}'),
        "the key 'k' occurs twice in __metadata__",
    ),
    "an empty name": (safetensors_bytes({"": entry("U8", [0])}), "a tensor has an empty name"),
    "an unknown field": (
        one(strides=[1]),
        "tensor 'a': unknown field 'strides'; a tensor has dtype, shape and data_offsets",
    ),
    # Metadata.
    "metadata that is a list": (safetensors_bytes({"__metadata__": []}), "__metadata__: '{' expected"),
    "metadata that is null": (safetensors_bytes({"__metadata__": None}), "__metadata__: '{' expected"),
    "metadata with a number": (safetensors_bytes({"__metadata__": {"k": 1}}), "__metadata__['k'] must be a string"),
    "metadata with an object": (safetensors_bytes({"__metadata__": {"k": {}}}), "__metadata__['k'] must be a string"),
    # A tensor's fields.
    "a tensor that is a list": (safetensors_bytes({"a": []}), "tensor 'a': '{' expected"),
    "a tensor that is null": (safetensors_bytes({"a": None}), "tensor 'a': '{' expected"),
    "no fields": (safetensors_bytes({"a": {}}), "tensor 'a': no dtype and no shape and no data_offsets"),
    "no dtype": (one(dtype=None), "tensor 'a': no dtype;"),
    "no shape": (one(shape=None), "tensor 'a': no shape;"),
    "no offsets": (one(data_offsets=None), "tensor 'a': no data_offsets;"),
    "an unknown dtype": (one(dtype="F31"), "tensor 'a': unknown dtype 'F31'; did you mean 'F32'"),
    "a dtype in lower case": (one(dtype="bf16"), "unknown dtype 'bf16'; known: BF16, BOOL"),
    "a dtype not read yet": (one(dtype="F4"), "unknown dtype 'F4'; "),
    "a dtype that is a number": (one(dtype=32), "tensor 'a': dtype must be a string"),
    "a very long dtype": (one(dtype="F" * 10_000), "unknown dtype 'FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF'; "),
    "a shape that is a number": (one(shape=2), "tensor 'a': shape: '[' expected"),
    "a shape that is a string": (one(shape="2"), "tensor 'a': shape: '[' expected"),
    "a negative dimension": (one(shape=[-2]), "tensor 'a': shape[0] must be an integer from 0 to 9223372036854775807"),
    "minus zero": (text('{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'), "shape[0] must be an integer"),
    "a leading zero": (text('{"a":{"dtype":"U8","shape":[00],"data_offsets":[0,0]}}'), "shape[0] must be an integer"),
    "a dimension that is a float": (one(shape=[2.0]), "shape[0] must be an integer"),
    "a dimension with an exponent": (
        text('{"a":{"dtype":"U8","shape":[1,2e0],"data_offsets":[0,2]}}', b"12"),
        "shape[1] must be an integer",
    ),
    "a dimension that is true": (one(shape=[True, 2]), "shape[0] must be an integer"),
    "a dimension that is null": (one(shape=[2, None]), "shape[1] must be an integer"),
    "a dimension that is a list": (one(shape=[[2]]), "shape[0] must be an integer"),
    "a dimension of 2^63": (one(shape=[2**63]), "shape[0] must be an integer"),
    "a dimension of five thousand digits": (one(shape=[10**4200]), "shape[0] must be an integer"),
    "NaN": (one(shape=[float("nan")]), "shape[0] must be an integer"),
    "33 dimensions": (one(shape=[1] * 32 + [2]), "tensor 'a': shape has more than 32 entries"),
    "a product that wraps to eight bytes": (one(shape=[2**62 + 1, 2]), "is more than 9223372036854775807 bytes"),
    "a product that wraps to zero": (
        one(shape=[2**32, 2**32], data_offsets=[0, 0]),
        "is more than 9223372036854775807 bytes",
    ),
    "an empty shape that cannot be indexed": (one(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), "is more than"),
    "offsets that are an object": (one(data_offsets={}), "tensor 'a': data_offsets: '[' expected"),
    "one offset": (one(data_offsets=[0]), "data_offsets [0] must be [begin, end]"),
    "three offsets": (one(data_offsets=[0, 4, 8]), "data_offsets [0, 4, 8] must be [begin, end]"),
    "offsets that run backwards": (
        one(data_offsets=[8, 0]),
        "data_offsets [8, 0] must be [begin, end] with begin ≤ end",
    ),
    "a negative offset": (one(data_offsets=[-8, 0]), "tensor 'a': data_offsets[0] must be an integer"),
    "an offset of 2^64": (one(data_offsets=[0, 2**64]), "data_offsets[1] must be an integer"),
    "a shape that is too small": (one(shape=[1]), "shape [1] of F32 is 4 bytes; data_offsets [0, 8] give 8"),
    "a shape that is too large": (one(shape=[3]), "shape [3] of F32 is 12 bytes; data_offsets [0, 8] give 8"),
    "a wider dtype": (one(dtype="F64"), "shape [2] of F64 is 16 bytes; data_offsets [0, 8] give 8"),
    # Where the tensors are.
    "a tensor past the end": (
        safetensors_bytes(GOOD, DATA[:-1]),
        "tensor 'b': data_offsets [8, 11] go past the 10 bytes of data",
    ),
    "a tensor far past the end": (one(shape=[2**60], data_offsets=[0, 2**62]), "go past the 8 bytes of data"),
    "no data": (safetensors_bytes(GOOD), "tensor 'a': data_offsets [0, 8] go past the 0 bytes of data"),
    "an overlap": (
        safetensors_bytes({"a": entry("F32", [2], 0), "b": entry("I8", [4], 7)}, DATA),
        "tensor 'b': data_offsets [7, 11] overlap tensor 'a', which ends at 8",
    ),
    "the same bytes twice": (
        safetensors_bytes({"a": entry("U8", [4]), "b": entry("U8", [4])}, b"1234"),
        "tensor 'b': data_offsets [0, 4] overlap tensor 'a'",
    ),
    "an empty tensor inside another": (
        safetensors_bytes({"a": entry("U8", [4]), "b": entry("U8", [0], 2)}, b"1234"),
        "tensor 'b': data_offsets [2, 2] overlap",
    ),
    "a gap": (
        safetensors_bytes({"a": entry("F32", [1], 0), "b": entry("I8", [3], 8)}, DATA),
        "tensor 'b': data_offsets [8, 11] leave a gap of 4 bytes after tensor 'a', which ends at 4",
    ),
    "a gap at the start": (
        safetensors_bytes({"b": entry("I8", [3], 8)}, DATA),
        "leave a gap of 8 bytes after the start of the data",
    ),
    "bytes after the last tensor": (
        safetensors_bytes(GOOD, DATA + b"x"),
        "1 bytes follow the last tensor, which ends at 11 of 12 bytes of data",
    ),
    "data without a tensor": (safetensors_bytes({}, b"x"), "1 bytes follow the last tensor, which ends at 0 of 1"),
    # Names that would steer a terminal.
    "a terminal escape in a name": (safetensors_bytes({"\x1b[2J\x9b": {}}), "tensor '\\x1b[2J\\x9b': no dtype"),
    "a very long name": (safetensors_bytes({"a" * 9999: {}}), "tensor '" + "a" * 40 + "…" + "a" * 20 + "': no dtype"),
}
