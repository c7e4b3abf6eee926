"""Broken GGUF files, each with what its refusal must say. Names in capitals are cases of llama.cpp's test-gguf."""

import struct

from tests.checkpoints.gguf_files import ARR, BOOL, F32, I32, LITTLE, STR, U8, U16, U32, U64, V1, File

w = LITTLE
PAIRS = (w.pair("k", U32, 7), w.array("a", STR, ["x", "yz"]))
ONE = w.tensor("t", [8])
TWO = (w.tensor("t", [8]), w.tensor("u", [3, 2], "F32", 32))
DATA = bytes(range(56))
LAST = 2**64 - 1


def one(*arguments: object, data: bytes = DATA, **options: object) -> bytes:
    """A file of one tensor."""
    return File(tensors=[w.tensor(*arguments, **options)], data=data).bytes()  # type: ignore[arg-type]


def pair(*pairs: bytes, data: bytes = b"") -> bytes:
    """A file of key-value pairs alone; the counts say that the last of them is whole."""
    return File(pairs=pairs, data=data).bytes()


def aligned(kind: int, value: object, offset: int = 32) -> bytes:
    """A file of two tensors that declares its alignment."""
    return File([w.pair("general.alignment", kind, value)], [ONE, w.tensor("u", [2], "F32", offset)], DATA).bytes()


def text(length: int, key: bytes = b"k") -> bytes:
    """A string value that claims its length."""
    return w.string(key) + struct.pack("<IQ", STR, length) + b"abc"


def array(kind: int, count: int, elements: bytes = bytes(64)) -> bytes:
    """An array that claims its element type and count."""
    return w.string("k") + struct.pack("<IIQ", ARR, kind, count) + elements


GOOD = File(PAIRS, TWO, DATA).bytes()

BROKEN = {
    # The first bytes.
    "an empty file": (b"", "byte 0: a GGUF file begins with b'GGUF'; b'' found"),
    "three bytes": (b"GGU", "begins with b'GGUF'; b'GGU' found"),
    "HEADER_BAD_MAGIC": (File(magic=b"FUGG").bytes(), "byte 0: a GGUF file begins with b'GGUF'; b'FUGG' found"),
    "the old GGML format": (File(magic=b"tjgg").bytes(), "begins with b'GGUF'; b'tjgg' found"),
    "no version": (b"GGUF\3\0\0", "byte 4: the version takes 4 bytes; only 3 bytes follow"),
    "HEADER_BAD_VERSION_0": (File(version=0).bytes(), "byte 4: the version is 0; refquant reads 1 to 3"),
    "HEADER_BAD_VERSION_FUTURE": (File(version=4).bytes(), "byte 4: the version is 4; refquant reads 1 to 3"),
    "a version of 65536": (File(version=1 << 16).bytes(), "byte 4: the version is 256; refquant reads 1 to 3"),
    "a big-endian version of the future": (b"GGUF\0\0\0\4" + bytes(16), "byte 4: the version is 4"),
    "no counts": (b"GGUF\3\0\0\0", "byte 8: the number of tensors takes 8 bytes; only 0 bytes follow"),
    "half of a count": (b"GGUF\3\0\0\0" + bytes(12), "byte 16: the number of key-value pairs takes 8 bytes; only 4"),
    "HEADER_BAD_N_TENSORS": (File(tensor_count=LAST).bytes(), "byte 8: the number of tensors is 18446744073709551615"),
    "HEADER_BAD_N_KV": (
        File(pair_count=LAST).bytes(),
        "byte 16: the number of key-value pairs is 18446744073709551615",
    ),
    "one tensor too many": (File(PAIRS, TWO, DATA, tensor_count=3).bytes(), "the name of tensor 2 is"),
    "one pair too many": (
        File(pair_count=1).bytes(),
        "the number of key-value pairs is 1; at most 0 fit in the 0 bytes",
    ),
    "a pair count that eats the tensors": (
        File(PAIRS, TWO, DATA, pair_count=3).bytes(),
        "the name of tensor 0 is empty",
    ),
    # Keys.
    "KV_BAD_KEY_SIZE": (
        pair(struct.pack("<Q", LAST) + b"k" + bytes(9)),
        "key 0 of the metadata is 18446744073709551615",
    ),
    "a key one byte too long": (pair(w.string(b"k" * 65536) + bytes(5)), "is 65536 bytes long; the limit is 65535"),
    "a key past the end": (pair(struct.pack("<Q", 99) + b"k" + bytes(9)), "is 99 bytes long; only 10 bytes follow"),
    "a key one byte past the end": (
        pair(struct.pack("<Q", 11) + b"k" + bytes(9)),
        "is 11 bytes long; only 10 bytes follow",
    ),
    "KV_EMPTY_KEY": (pair(w.pair("", U32, 1)), "byte 24: key 0 of the metadata is empty"),
    "a key that is not UTF-8": (pair(w.pair(b"k\xff", U32, 1)), "is not UTF-8: invalid start byte at its byte 1"),
    "a key with a NUL": (pair(w.pair("k\0l", U32, 1)), "key 0 of the metadata has a NUL at its byte 1"),
    "KV_DUPLICATE_KEY": (
        pair(w.pair("k", U32, 1), w.pair("l", U32, 1), w.pair("k", U8, 1)),
        "byte 58: the key 'k' occurs twice in the metadata",
    ),
    # Values.
    "KV_BAD_TYPE": (
        pair(w.string("k") + struct.pack("<II", 13, 0)),
        "the type of metadata 'k' is 13; the types are 0 to 12",
    ),
    "the largest type": (pair(w.string("k") + struct.pack("<II", 2**32 - 1, 0)), "is 4294967295; the types are"),
    "a value cut off": (
        pair(w.string("key") + struct.pack("<IH", U32, 0)),
        "byte 39: metadata 'key' takes 4 bytes; only 2",
    ),
    "a string past the end": (pair(text(4)), "metadata 'k' takes 4 bytes; only 3 bytes follow"),
    "a string of half the address space": (pair(text(2**63)), "takes 9223372036854775808 bytes; only 3"),
    "the longest string": (pair(text(LAST)), "takes 18446744073709551615 bytes; only 3"),
    "an array of arrays": (
        pair(array(ARR, 1, struct.pack("<IQI", U32, 1, 7))),
        "byte 37: metadata 'k' is an array of arrays",
    ),
    "an empty array of arrays": (pair(array(ARR, 0, b"")), "metadata 'k' is an array of arrays"),
    "an array of nothing known": (pair(array(13, 0)), "the element type of metadata 'k' is 13"),
    "KV_BAD_VALUE_SIZE": (
        pair(array(U32, LAST)),
        "byte 41: the length of metadata 'k' is 18446744073709551615; at most 16",
    ),
    "an array one too long": (pair(array(U64, 9)), "the length of metadata 'k' is 9; at most 8 fit in the 64 bytes"),
    "an array whose bytes wrap": (pair(array(U64, 2**61 + 8)), "is 2305843009213693960; at most 8 fit"),
    "more strings than bytes": (pair(array(STR, 9)), "the length of metadata 'k' is 9; at most 8 fit in the 64 bytes"),
    "strings past the end": (
        pair(array(STR, 2, w.string("abcdefgh") + struct.pack("<Q", 5) + b"abcd")),
        "byte 65: metadata 'k'[1] is 5 bytes long; only 4 bytes follow",
    ),
    "a string's length past the end": (
        pair(array(STR, 2, w.string("abcdefgh") + b"abc")),
        "byte 65: the length of metadata 'k'[1] takes 8 bytes; only 3",
    ),
    "an array's string of 2^64 - 1 bytes": (
        pair(array(STR, 1, struct.pack("<Q", LAST))),
        "metadata 'k'[0] is 18446744073709551615 bytes long; only 0",
    ),
    # The alignment.
    "KV_BAD_ALIGN": (aligned(U32, 13), "byte 53: metadata 'general.alignment' is 13; it must be a power of two"),
    "KV_WRONG_TYPE_ALIGN": (aligned(I32, 32), "metadata 'general.alignment' is of type i32; it must be u32"),
    "an alignment of 0": (aligned(U32, 0), "metadata 'general.alignment' is 0; it must be a power of two"),
    "an alignment of 64 bits": (aligned(U64, 32), "is of type u64; it must be u32"),
    "an alignment that is text": (aligned(STR, "32"), "is of type str; it must be u32"),
    "an alignment that is an array": (
        File([w.array("general.alignment", U32, [32])], [ONE], DATA).bytes(),
        "is of type [u32]; it must be u32",
    ),
    "TENSORS_BAD_ALIGN": (
        File([w.pair("general.alignment", U32, 13)], [ONE], DATA).bytes(),
        "is 13; it must be a power",
    ),
    "DATA_BAD_ALIGN": (aligned(U32, 2**32 - 1), "is 4294967295; it must be a power of two"),
    "TENSORS_INCONSISTENT_ALIGN": (
        File(tensors=[w.tensor("t", [3]), w.tensor("u", [3], "F32", 12)], data=DATA).bytes(),
        "tensor 'u' of 12 bytes: the offset is 12, which is no multiple of the alignment, 32",
    ),
    "DATA_INCONSISTENT_ALIGN": (
        aligned(U32, 64),
        "tensor 'u' of 8 bytes: the offset is 32, which is no multiple of the",
    ),
    "the largest alignment": (
        aligned(U32, 1 << 31, offset=1 << 31),
        "so its data ends at byte 2147483680; the file has",
    ),
    # A tensor's name.
    "TENSORS_BAD_NAME_SIZE": (one("t" * 64, [8]), "the name of tensor 0 is 64 bytes long; the limit is 63"),
    "a name past the end": (
        File(tensors=[struct.pack("<Q", 63) + b"t" + bytes(28)]).bytes(),
        "the name of tensor 0 is 63 bytes long; only",
    ),
    "a tensor without a name": (one("", [8]), "byte 24: the name of tensor 0 is empty"),
    "a name that is not UTF-8": (one(b"\xc3", [8]), "the name of tensor 0 is not UTF-8: unexpected end of data"),
    "a name with a NUL": (one("a\0b", [8]), "the name of tensor 0 has a NUL at its byte 1"),
    "TENSORS_DUPLICATE_NAME": (
        File(tensors=[ONE, w.tensor("t", [8], "F32", 32)], data=bytes(64)).bytes(),
        "byte 57: the tensor 't' occurs twice",
    ),
    # Its shape.
    "TENSORS_BAD_N_DIMS": (one("t", [1, 1, 1, 1, 1]), "byte 33: tensor 't' has 5 dimensions; 1 to 4 are allowed"),
    "no dimensions": (one("t", [], data=bytes(99)), "tensor 't' has 0 dimensions; 1 to 4 are allowed"),
    "the most dimensions": (one("t", [1], count=2**32 - 1), "tensor 't' has 4294967295 dimensions"),
    "TENSORS_BAD_SHAPE": (one("t", [LAST]), "dimension 0 is 18446744073709551615; 1 to 9223372036854775807"),
    "TENSORS_ZERO_DIM": (one("t", [8, 0]), "byte 45: tensor 't': dimension 1 is 0; 1 to 9223372036854775807"),
    "a first dimension of 0": (one("t", [0]), "tensor 't': dimension 0 is 0"),
    "TENSORS_NE_TOO_BIG": (one("t", [2**33 - 4, 2**33 - 4]), "weights and bytes are limited to 9223372036854775807"),
    "TENSORS_NBYTES_TOO_BIG": (one("t", [2**30 + 8, 2**30 + 8], 27), "shape [1073741832, 1073741832] of I64 is"),
    "TENSORS_NBYTES_PAD_WRAP": (one("t", [(2**64 - 8) // 4 // 2, 2]), "are limited to 9223372036854775807"),
    "a product that wraps to 8": (one("t", [2**62 + 1, 8], "I8"), "are limited to 9223372036854775807"),
    "a product that wraps to 0": (one("t", [2**32, 2**32], "I8"), "are limited to 9223372036854775807"),
    "four dimensions that wrap": (one("t", [2**16] * 4, "I8"), "are limited to 9223372036854775807"),
    # Its type.
    "TENSORS_BAD_TYPE": (one("t", [8], 43), "byte 45: tensor 't' is of type 43; the last that refquant knows is 42"),
    "a negative type": (one("t", [8], 2**32 - 1), "tensor 't' is of type 4294967295"),
    "a type that ggml removed": (one("t", [32], 4), "tensor 't' is of type 4, Q4_2, which ggml no longer has"),
    "a repacked type": (one("t", [32], 31), "is of type 31, Q4_0_4_4, which ggml no longer has"),
    "half a block a row": (one("t", [48, 2], "Q4_0"), "has rows of 48 weights; Q4_0 stores them in blocks of 32"),
    "blocks across rows": (one("t", [128, 2], "Q4_K"), "has rows of 128 weights; Q4_K stores them in blocks of 256"),
    # Where it is.
    "TENSORS_BAD_OFFSET": (
        one("t", [8], "F32", LAST),
        "byte 49: tensor 't' of 32 bytes: the offset is 18446744073709551615",
    ),
    "an offset that is not aligned": (
        one("t", [8], "F32", 8),
        "the offset is 8, which is no multiple of the alignment, 32",
    ),
    "a gap at the start": (
        one("t", [2], "F32", 32),
        "the offset is 32, which leaves a gap after the start of the data; it must",
    ),
    "a gap": (
        File(tensors=[ONE, w.tensor("u", [2], "F32", 64)], data=bytes(99)).bytes(),
        "tensor 'u' of 8 bytes: the offset is 64, which leaves a gap after tensor 't'; it must be 32",
    ),
    "an overlap": (
        File(tensors=[w.tensor("t", [9]), w.tensor("u", [2], "F32", 32)], data=bytes(99)).bytes(),
        "tensor 'u' of 8 bytes: the offset is 32, which overlaps tensor 't'; it must be 64",
    ),
    "the same bytes twice": (
        File(tensors=[ONE, w.tensor("u", [8])], data=bytes(99)).bytes(),
        "the offset is 0, which overlaps tensor 't'; it must be 32",
    ),
    "tensors out of order": (
        File(tensors=[w.tensor("t", [8], "F32", 32), w.tensor("u", [8])], data=bytes(99)).bytes(),
        "tensor 't' of 32 bytes: the offset is 32, which leaves a gap after the start",
    ),
    "DATA_NOT_ENOUGH_DATA": (
        File(PAIRS, TWO, DATA[:-1]).bytes(),
        "tensor 'u' of 24 bytes: the offset is 32, so its data ends at byte",
    ),
    "DATA_MEM_SIZE_OVERFLOW": (one("t", [2**60]), "of 4611686018427387904 bytes: the offset is 0, so its data ends at"),
    "no data": (one("t", [8], data=b""), "so its data ends at byte 96; the file has 64 bytes: truncated or wrong"),
    "no padding before the data": (one("t", [8])[:57], "byte 49: tensor 't' of 32 bytes: the offset is 0, so its data"),
    # Version 1.
    "a count that only version 1 could mean": (
        File(version=1).bytes()[:14],
        "the number of key-value pairs takes 4 bytes",
    ),
    "a string of version 1 past the end": (
        File([V1.string("k") + struct.pack("<II", STR, 9) + b"abcdefgh"], version=1, w=V1).bytes(),
        "metadata 'k' takes 9 bytes; only 8",
    ),
    "strings of version 1 past the end": (
        File([V1.array("k", STR, ["a"], count=2) + b"abc"], version=1, w=V1).bytes(),
        "byte 38: the length of metadata 'k'[1] takes 4 bytes; only 3",
    ),
    # Names that would steer a terminal.
    "a terminal escape in a key": (pair(w.string("\x1b[2J\x9b") + bytes([13, 0, 0, 0, 0])), "metadata '\\x1b[2J\\x9b'"),
    "a terminal escape in a name": (one("\x1b[2J", [0]), "tensor '\\x1b[2J': dimension 0"),
    "a very long key": (pair(w.string("k" * 9999) + bytes([13, 0, 0, 0])), "'" + "k" * 40 + "…" + "k" * 20 + "' is 13"),
}

# llama.cpp's HANDCRAFTED_… cases that it loads and refquant does too.
LOADED = {
    "HEADER_EMPTY": File().bytes(),
    "HEADER_BAD_VERSION_1": File(version=1, w=V1).bytes(),  # llama.cpp no longer reads version 1, refquant does
    "KV_SUCCESS": File(
        [
            *(w.pair(f"my_key_{kind}", kind, 3) for kind in range(13) if kind not in (STR, ARR, F32)),
            w.pair("f", F32, -0.0),
            w.pair("s", STR, b"\x8d\xff no UTF-8"),
            *(w.array(f"my_array_{kind}", kind, [1, 0, 2]) for kind in range(13) if kind not in (STR, ARR)),
            w.array("strings", STR, [b"", b"\xff", "é"]),
            w.array("none", BOOL, []),
        ]
    ).bytes(),
    "TENSORS_SUCCESS": File(PAIRS, TWO, DATA).bytes(),
    "TENSORS_CUSTOM_ALIGN": File(
        [w.pair("general.alignment", U32, 1)], [w.tensor("t", [3], "I8"), w.tensor("u", [1], "F32", 3)], DATA[:7],
        alignment=1,
    ).bytes(),
    "DATA_SUCCESS": File(PAIRS, TWO, DATA + bytes(8)).bytes(),
    "DATA_CUSTOM_ALIGN": File(
        [w.pair("general.alignment", U32, 64)], [ONE, w.tensor("u", [2], "F32", 64)], bytes(128), alignment=64
    ).bytes(),
    "no padding after the last tensor": File(tensors=[w.tensor("t", [3])], data=bytes(12)).bytes(),
    "bytes after the data": File(PAIRS, TWO, DATA + bytes(99)).bytes(),
    "a key of 65535 bytes": pair(w.pair("k" * 65535, U16, 1)),
    "a name of 63 bytes": one("é" * 31 + "t", [8]),
}  # fmt: skip
