"""Every type of ggml against ggml's own C: the same bytes encoded, the same bits decoded (spec/ggml.md).

One type alone: `pytest -m peers tests/peers/test_ggml.py -k q4_k`; the bulk test is `slow` as well.
"""

import ctypes
import faulthandler
import math
import mmap
import os
import signal
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.arrays import Array, Float32, UInt8
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.ggml_blocks import ggml_rows, imatrix
from refquant.formats.ggml import GgmlFormat
from tests.peers import ggml_data
from tests.peers.llama_cpp import dequantize_row, ggml, quantize_chunk

pytestmark = pytest.mark.peers

WEIGHTS = 10_000_000  # compared for each type in the bulk test

FORMATS = [fmt for fmt in map(rq.get_format, rq.formats()) if isinstance(fmt, GgmlFormat)]
LOOKING = [fmt for fmt in FORMATS if fmt.type.encode_weighted is not None]  # at an importance matrix
PLAIN = [fmt for fmt in FORMATS if not fmt.needs_imatrix]

# ggml's spelling where it is not the type's name, and the types that ggml_quantize_chunk does not know.
SPELLING = {f"q{bits}_k": f"q{bits}_K" for bits in (2, 3, 4, 5, 6, 8)}
CHUNKLESS = {"q8_1", "q8_k"}
UNREADABLE = {"q8_1"}  # a type of activations: ggml has no function that decodes it
FLOATS = {"f16": "ggml_fp16_to_fp32_row", "bf16": "ggml_bf16_to_fp32_row"}

many = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)

# Blocks for which C leaves the result open, a cast of a float beyond the integer's range: spec/ names them for each
# type. (blocks, block_size) to (blocks,).
UNDEFINED: dict[str, Callable[[Float32], Array]] = {
    "mxfp4": lambda w: (np.abs(w) < 2.0**-125).all(axis=1) & w.any(axis=1),
}


def named(formats: list[GgmlFormat]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("fmt", formats, ids=[fmt.name for fmt in formats])


def theirs(fmt: GgmlFormat, w: Float32, importance: Float32 | None = None) -> UInt8:
    row_bytes = fmt.layout(w.shape)["blocks"].shape[-1]
    if fmt.name not in CHUNKLESS:
        return quantize_chunk(fmt.type.type_id, w, row_bytes, importance)
    # ggml leaves the sums of a zero block of q8_k as they were, so what it writes into must be zero.
    out = np.zeros((len(w), row_bytes), np.uint8)
    function = getattr(ggml(), f"quantize_row_{SPELLING.get(fmt.name, fmt.name)}_ref")
    function.restype = None
    function(ctypes.c_void_p(w.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(w.size))
    return out


def decoded_by_them(fmt: GgmlFormat, blocks: UInt8, size: int) -> Float32:
    if fmt.name not in FLOATS:
        return dequantize_row(SPELLING.get(fmt.name, fmt.name), blocks, size)
    out = np.empty(size, np.float32)
    blocks = np.ascontiguousarray(blocks)
    function = getattr(ggml(), FLOATS[fmt.name])
    function.restype = None
    function(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(size))
    return out


def defined(fmt: GgmlFormat, w: Float32) -> Float32:
    """The matrix with zeros for the blocks on which C leaves ggml's result open."""
    undefined = UNDEFINED.get(fmt.name)
    if undefined is None:
        return w
    blocks = w.reshape(-1, fmt.block_size).copy()
    with np.errstate(all="ignore"):
        blocks[undefined(blocks)] = 0
    return blocks.reshape(w.shape)


def with_one_nan(fmt: GgmlFormat, stored: UInt8) -> UInt8:
    """The bytes with one pattern for every NaN among the stored scales: the sign of a new NaN is the processor's."""
    blocks = stored.reshape(-1).view(fmt.type.struct).copy()
    for name in blocks.dtype.names or ():
        if blocks.dtype[name].base.kind == "f":
            blocks[name] = np.where(np.isnan(blocks[name]), blocks.dtype[name].base.type(np.nan), blocks[name])
    return blocks.view(np.uint8).reshape(stored.shape)


def theirs_apart(fmt: GgmlFormat, w: Float32, importance: Float32 | None = None) -> UInt8 | None:
    """What `theirs` gives, from a process of its own; None where ggml aborts, which would end this one."""
    shape = fmt.layout(w.shape)["blocks"].shape
    ggml().ggml_quantize_init(fmt.type.type_id)  # the grids, once for all children
    with mmap.mmap(-1, math.prod(shape)) as shared, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child only computes
        child = os.fork()
        if child == 0:
            faulthandler.disable()
            os.environ["GGML_NO_BACKTRACE"] = "1"  # which a debugger would take seconds to print
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            try:
                shared.write(theirs(fmt, w, importance).tobytes())
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT:
            return None
        assert status == 0
        return np.frombuffer(shared[:], np.uint8).reshape(shape)


def assert_same_bytes_or_refusal(fmt: GgmlFormat, w: Float32, importance: Float32 | None = None) -> None:
    """The same bytes, or a refusal exactly where ggml aborts."""
    ordinary = np.abs(w).max() < 2.0**30 and (importance is None or importance.max() < 2.0**30)
    if ordinary or not fmt.name.startswith("iq"):
        assert_same_bytes(fmt, theirs(fmt, w, importance), w, importance)
        return
    expected = theirs_apart(fmt, w, importance)
    if expected is None:
        with pytest.raises(rq.RefquantError, match="ggml aborts"):
            fmt.encode_bytes(w, importance)
    else:
        assert_same_bytes(fmt, expected, w, importance)


def assert_same_bytes(fmt: GgmlFormat, expected: UInt8, w: Float32, importance: Float32 | None = None) -> None:
    ours = fmt.encode_bytes(w, importance)
    if np.array_equal(ours, expected):
        return
    a, b = with_one_nan(fmt, ours), with_one_nan(fmt, expected)
    different = (a != b).reshape(-1, fmt.type.struct.itemsize).any(axis=-1)
    if different.any():
        block = int(np.argmax(different))
        got, wanted = (x.reshape(-1).view(fmt.type.struct)[block] for x in (a, b))
        how = "without an importance matrix" if importance is None else "with one"
        raise AssertionError(
            f"{fmt.name} {how}: {np.count_nonzero(different)} of {different.size} blocks differ, first {block}:\n"
            f"{got}\nwhere ggml gives\n{wanted}\nfor {w.reshape(-1, fmt.block_size)[block]!r}"
        )


def assert_same_numbers(fmt: GgmlFormat, stored: UInt8) -> None:
    """Decoded alike to the bit; where one is NaN both are."""
    stored = np.ascontiguousarray(stored).reshape(-1)
    size = stored.size // fmt.type.struct.itemsize * fmt.block_size
    ours = rq.dequantize(stored, fmt, (size,))
    expected = decoded_by_them(fmt, stored, size)
    nan = np.isnan(ours) & np.isnan(expected)
    assert_same_bits(np.where(nan, np.float32(0), ours), np.where(nan, np.float32(0), expected), f"{fmt.name} decoded")


@named(PLAIN)
def test_blocks_of_every_kind_are_encoded_to_their_bytes(fmt):
    @many
    @example(np.zeros((1, fmt.block_size), np.float32))
    @example(-np.zeros((1, fmt.block_size), np.float32))
    @given(ggml_rows(fmt.block_size))
    def equal(w):
        assert_same_bytes_or_refusal(fmt, defined(fmt, w))

    equal()


@named(PLAIN)
def test_blocks_of_ordinary_size_are_encoded_to_their_bytes(fmt):
    @many
    @given(ggml_rows(fmt.block_size, -30, 14))
    def equal(w):
        assert_same_bytes_or_refusal(fmt, defined(fmt, w))

    equal()


@named(FORMATS)
def test_with_an_importance_matrix_blocks_are_encoded_to_their_bytes(fmt):
    if fmt.name in CHUNKLESS:
        return  # ggml's functions for them take none

    @settings(many, max_examples=100 if fmt in LOOKING else 10)
    @given(st.data())
    def equal(data):
        low, high = data.draw(st.sampled_from([(-126, 127), (-30, 14), (-20, 8), (-10, 4)]))
        w = data.draw(ggml_rows(fmt.block_size, low, high))
        assert_same_bytes_or_refusal(fmt, defined(fmt, w), data.draw(imatrix(w.shape[-1])))

    equal()


@named([fmt for fmt in FORMATS if fmt.name not in UNREADABLE])
def test_any_bytes_decode_to_their_numbers(fmt):
    size = fmt.type.struct.itemsize

    @many
    @given(st.binary(min_size=size, max_size=size), st.integers(0, 2**32 - 1))
    def equal(first, seed):
        others = np.random.default_rng(seed).integers(0, 256, 7 * size, np.uint8)
        assert_same_numbers(fmt, np.concatenate([np.frombuffer(first, np.uint8), others]))

    equal()


@named([fmt for fmt in FORMATS if fmt.name not in UNREADABLE])
def test_every_value_of_every_byte_decodes_to_their_numbers(fmt):
    size = fmt.type.struct.itemsize
    blocks = np.random.default_rng(size).integers(0, 256, (size, 256, size), np.uint8)
    places = np.arange(size)
    blocks[places, :, places] = np.arange(256, dtype=np.uint8)
    assert_same_numbers(fmt, blocks)


@pytest.mark.slow
@named(FORMATS)
def test_ten_million_weights_are_encoded_to_their_bytes_and_decoded_to_their_numbers(fmt, record_property):
    ways = ([] if fmt.needs_imatrix else [False]) + ([True] if fmt in LOOKING else [])
    plain = weighted = decoded = 0
    for w, importance in ggml_data.chunks(WEIGHTS // len(ways)):
        for looks in ways:
            inputs = (defined(fmt, w), importance if looks else None)
            stored = theirs(fmt, *inputs)
            assert_same_bytes(fmt, stored, *inputs)
            plain, weighted = plain + w.size * (not looks), weighted + w.size * looks
            if fmt.name not in UNREADABLE:
                assert_same_numbers(fmt, stored)
                decoded += w.size
    assert plain + weighted >= WEIGHTS
    record_property(
        "compared with ggml",
        f"{fmt.name}: {plain:,} weights without and {weighted:,} with an importance matrix encoded, "
        f"{decoded:,} decoded: 0 bytes differ",
    )
