"""refquant's code books and bitsandbytes 0.50 on CPU tensors of float32: the same bits (spec/codebook.md)."""

from collections.abc import Iterator
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import refquant as rq
from refquant.arrays import Float32
from refquant.conformance import code_changes, strategies
from refquant.conformance.bits import assert_same_bits, assert_same_parts
from refquant.formats.base import Parts
from refquant.formats.cascade_sum import mean
from refquant.formats.codebook import BLOCK_SIZES, CodeBook, FourBit
from refquant.formats.tables import load_table

pytestmark = pytest.mark.peers

SCHEMES = [
    *(f"{name}-b{size}{dq}" for name in ("nf4", "fp4") for size in BLOCK_SIZES for dq in ("", "-dq")),
    *(f"int8-dynamic-b{size}" for size in BLOCK_SIZES),
]

STORIES = Path(rq.__file__).parent / "models/embedded/stories260K/model.safetensors"

many = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """torch splits a sum of 32,768 numbers or more among its threads, and so changes the bits of the mean."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def theirs(w: Float32, fmt: CodeBook) -> tuple[Parts, torch.Tensor, QuantState]:
    """The parts that bitsandbytes makes, under refquant's names, and what it needs to decode them."""
    tensor = torch.from_numpy(w.copy())
    if not isinstance(fmt, FourBit):
        codes, state = bnb.quantize_blockwise(tensor, blocksize=fmt.block_size)
        return {"codes": codes.numpy().ravel(), "absmax": state.absmax.numpy()}, codes, state
    codes, state = bnb.quantize_4bit(
        tensor, blocksize=fmt.block_size, compress_statistics=fmt.double_quant, quant_type=fmt.table
    )
    parts = {"codes": codes.numpy().ravel(), "absmax": state.absmax.numpy()}
    if fmt.double_quant:
        assert state.state2.blocksize == 256
        parts["nested_absmax"] = state.state2.absmax.numpy()
        parts["nested_offset"] = state.offset.numpy().reshape(1)
    return parts, codes, state


def decoded_by_them(codes: torch.Tensor, state: QuantState, size: int) -> Float32:
    """The flat tensor. Their CPU library takes even lengths alone, so an odd one is decoded with its padding."""
    if state.quant_type is None:
        return bnb.dequantize_blockwise(codes, state).numpy().ravel()
    state.shape = torch.Size([size + size % 2])
    # A column vector: a packed tensor of one row would come back transposed.
    return bnb.dequantize_4bit(codes.reshape(-1, 1), state).numpy().ravel()[:size]


def assert_equal_to_theirs(w: Float32, fmt: CodeBook) -> None:
    parts, codes, state = theirs(w, fmt)
    try:
        q = rq.quantize(w, fmt)
    except rq.ScaleOverflowError:
        assert np.isinf(parts["nested_offset"][0])
        return
    assert_same_parts(dict(q.parts), parts, str(fmt))
    assert_same_bits(q.dequantize().ravel(), decoded_by_them(codes, state, w.size), f"{fmt} decoded")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parts_and_values_of_drawn_tensors_are_theirs(scheme: str) -> None:
    fmt = rq.get_format(scheme)
    assert isinstance(fmt, CodeBook)
    table = fmt.table if isinstance(fmt, FourBit) else "dynamic8"
    drawn = st.one_of(
        strategies.weights(fmt),
        code_changes.tensors(table, fmt.block_size),
        code_changes.tensors(table, fmt.block_size, -6, 0),
    )

    @many
    @example(np.zeros(fmt.block_size + 1, np.float32))
    @example(np.full(fmt.block_size + 1, np.finfo(np.float32).max))
    @example(np.full(fmt.block_size + 1, -np.float32(1e-45)))
    @given(drawn.filter(lambda w: w.size > 0))
    def equal(w: Float32) -> None:
        assert_equal_to_theirs(w, fmt)

    equal()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tails_of_every_kind_are_theirs(scheme: str) -> None:
    fmt = rq.get_format(scheme)
    assert isinstance(fmt, CodeBook)
    size = fmt.block_size
    rng = np.random.default_rng(size)
    for n in (1, 2, 3, size - 1, size, size + 1, 2 * size - 1, 3 * size + size // 2 + 1, 257 * size + 5):
        assert_equal_to_theirs((rng.normal(size=n) * np.exp(rng.normal(size=n))).astype(np.float32), fmt)


@pytest.mark.parametrize(
    "scheme", ["nf4-b64", "nf4-b32-dq", "fp4-b64-dq", "fp4-b128", "int8-dynamic-b4096", "int8-dynamic-b64"]
)
def test_four_million_normals_are_theirs(scheme: str) -> None:
    fmt = rq.get_format(scheme)
    assert isinstance(fmt, CodeBook)
    assert_equal_to_theirs(np.random.default_rng(7).normal(size=4_000_001).astype(np.float32), fmt)


@pytest.mark.parametrize("scheme", ["nf4-b64", "nf4-b64-dq", "fp4-b64", "fp4-b32-dq", "int8-dynamic-b256"])
def test_the_tensors_of_a_real_model_are_theirs(scheme: str) -> None:
    fmt = rq.get_format(scheme)
    assert isinstance(fmt, CodeBook)
    tensors = load_file(STORIES)
    assert len(tensors) > 40
    for w in tensors.values():
        assert_equal_to_theirs(w, fmt)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_every_byte_decodes_to_their_values(table: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).repeat(2).reshape(-1, 1)
    absmax = torch.tensor([1.0, 3.0e38, 1e-38, 1e-45] * 4)
    state = QuantState(absmax, torch.Size([1024]), None, 64, table, torch.float32)
    expected = bnb.dequantize_4bit(codes, state).numpy().ravel()
    parts = {"codes": codes.numpy().ravel(), "absmax": absmax.numpy()}
    assert_same_bits(rq.dequantize(parts, table, (1024,)), expected, table)


def test_their_decoder_of_odd_rows_loses_the_sign_of_code_8_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "disable", True)
    w = np.random.default_rng(3).normal(size=(7, 129)).astype(np.float32)
    w[:, ::2] *= np.float32(1e-4)
    fmt = FourBit(table="fp4")
    ours = rq.quantize(w, fmt)
    _, codes, state = theirs(w, fmt)
    expected = bnb.dequantize_4bit(codes, state).numpy()
    assert_same_bits(ours.dequantize() + np.float32(0), expected)
    nibbles = np.stack([ours.parts["codes"] >> 4, ours.parts["codes"] & 15], axis=-1).reshape(-1)[: w.size]
    lost = np.signbit(ours.dequantize()) & ~np.signbit(expected)
    assert np.array_equal(lost.ravel(), nibbles == 8)
    assert lost.any()


def test_the_tables_are_theirs() -> None:
    assert_same_bits(load_table("dynamic8").copy(), bnb.create_dynamic_map().numpy())
    for name in ("nf4", "fp4"):
        ours, their = load_table(name), bnb.get_4bit_type(name, "cpu").numpy()
        assert_same_bits(ours + np.float32(0), their + np.float32(0))  # their Python table of fp4 has no −0


@many
@given(st.integers(1, 5000), st.integers(0, 2**32 - 1), st.integers(-30, 30))
def test_the_mean_is_added_up_in_torchs_order(n: int, seed: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.abs(np.ldexp(rng.normal(size=n), rng.integers(min(spread, 0), max(spread, 0) + 1, n))).astype(np.float32)
    assert_same_bits(np.array(mean(x)), torch.from_numpy(x).mean().numpy())


@pytest.mark.parametrize("n", [2**15 - 1, 2**15, 2**17 + 33, 2**20, 2**21 + 7, 3_000_001])
def test_the_mean_of_many_numbers_is_torchs_on_one_thread(n: int) -> None:
    x = np.abs(np.random.default_rng(n).normal(size=n)).astype(np.float32)
    assert_same_bits(np.array(mean(x)), torch.from_numpy(x).mean().numpy())


def test_an_empty_tensor_has_their_empty_parts() -> None:
    for scheme in ("nf4", "fp4", "int8-dynamic"):
        fmt = rq.get_format(scheme)
        assert isinstance(fmt, CodeBook)
        empty = np.zeros(0, np.float32)
        assert_same_parts(dict(rq.quantize(empty, fmt).parts), theirs(empty, fmt)[0], scheme)
