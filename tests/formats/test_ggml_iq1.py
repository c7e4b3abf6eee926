"""iq1_s and iq1_m: the special cases of spec/ggml_iq1.md, one by one. Their bytes against ggml's: tests/peers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refquant as rq
from refquant.conformance.bits import assert_same_bits
from refquant.conformance.definitions import f32
from refquant.conformance.ggml_iq1 import ELEMENTS
from refquant.formats.base import encode
from refquant.formats.ggml import structs
from refquant.formats.ggml_grid import grid
from refquant.formats.ggml_iq1 import block_scale_iq1_m
from refquant.formats.ggml_iq1_search import LEVELS, one_shift, snap, two_shifts

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # searches called as formats call them: C's floats

NAMES = ["iq1_s", "iq1_m"]
UP, DOWN = (-0.875, 0.125, 1.125), (-1.125, -0.125, 0.875)


def encoded(w, name, imatrix=None):
    fmt = rq.get_format(name)
    w = np.asarray(w, np.float32)
    importance = np.ones(w.shape[-1]) if imatrix is None else imatrix
    return structs({"blocks": fmt.encode_bytes(w, np.asarray(importance, np.float32))}, fmt).reshape(-1)


def decoded(blocks, name):
    return rq.dequantize(blocks.view(np.uint8), name, (256 * len(blocks),))


def sums(terms):
    total = 0.0
    for term in terms:
        total = f32(total + term)
    return total


def best_split(x, weight):
    """S1 … S4 for one run of iq1_s, in Python numbers: codes, scale and whether the shift is down."""
    order = sorted(range(len(x)), key=lambda i: x[i])  # stable, and −0 equals 0
    of_x, of_w = [0.0], [0.0]
    for i in order:
        of_x.append(f32(of_x[-1] + f32(weight[i] * x[i])))
        of_w.append(f32(of_w[-1] + weight[i]))
    best = (f32(-np.finfo(np.float32).max), 0.0, 0, 0, 0)
    for i in range(len(x) + 1):
        for j in range(i, len(x) + 1):
            for down, levels in enumerate((UP, DOWN)):
                parts = [
                    (of_x[i], of_w[i]),
                    (f32(of_x[j] - of_x[i]), f32(of_w[j] - of_w[i])),
                    (f32(of_x[-1] - of_x[j]), f32(of_w[-1] - of_w[j])),
                ]
                a = sums(f32(part * level) for (part, _), level in zip(parts, levels, strict=True))
                b = sums(f32(f32(part * level) * level) for (_, part), level in zip(parts, levels, strict=True))
                if b > 0 and f32(a * a) > f32(best[0] * b):
                    scale = f32(a / b)
                    best = (f32(scale * a), scale, i, j, down)
    _, scale, i, j, down = best
    codes = [0] * len(x)
    for place, position in enumerate(order):
        codes[position] = (place >= i) + (place >= j)
    return ([2 - c for c in codes], -scale, not down) if scale < 0 else (codes, scale, bool(down))


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_as_the_page_defines(name):
    fmt = rq.get_format(name)
    size = fmt.type.struct.itemsize

    @settings(max_examples=30)
    @given(st.binary(min_size=size, max_size=size))
    def check(block):
        found = rq.dequantize(np.frombuffer(block, np.uint8), fmt, (256,))
        expected = np.array([ELEMENTS[name](block, i) for i in range(256)], np.float32)
        nan = np.isnan(found) & np.isnan(expected)
        assert_same_bits(np.where(nan, 0, found), np.where(nan, 0, expected))

    check()


def test_the_split_of_a_run_is_the_page_s():
    rng = np.random.default_rng(0)
    x = np.stack(
        [
            rng.normal(size=32),
            rng.integers(-2, 3, 32),
            np.abs(rng.normal(size=32)),
            np.zeros(32) + (np.arange(32) == 7),
            rng.standard_t(1, 32),
            np.where(rng.random(32) < 0.5, -0.0, rng.choice([0.0, 1.0], 32)),
        ],
        axis=1,
    ).astype(np.float32)
    weight = rng.chisquare(1, x.shape).astype(np.float32)
    split = one_shift(x, weight)
    for k in range(x.shape[1]):
        codes, scale, down = best_split([float(v) for v in x[:, k]], [float(v) for v in weight[:, k]])
        assert split.codes[:, k].tolist() == codes
        assert (float(split.scale[k]), bool(split.shift[k])) == (scale, down)


def test_equal_weights_keep_their_order_whatever_their_importance():
    x = np.array([1.0] * 8 + [-1.0] * 8 + [0.0, -0.0] * 8, np.float32)
    weight = np.random.default_rng(3).chisquare(1, 32).astype(np.float32)
    split = one_shift(x[:, None], weight[:, None])
    codes, scale, _ = best_split([float(v) for v in x], [float(v) for v in weight])
    assert split.codes[:, 0].tolist() == codes
    assert float(split.scale[0]) == scale


def test_both_halves_of_a_run_of_iq1_m_take_the_shift_that_suits_them():
    half = np.array([-0.875, 0.125, 1.125, 1.125, 0.125, -0.875, 0.125, 1.125], np.float32)
    runs = np.stack([np.append(a, b) for a in (half, -half) for b in (half, -half)], axis=1)  # (16, 4)
    split = two_shifts(runs, np.ones_like(runs))
    assert split.shift.tolist() == [0, 1, 2, 3]
    assert split.scale.tolist() == [1, 1, 1, 1]
    assert (LEVELS[split.shift // 2, split.codes[:8]] == runs[:8]).all()
    assert (LEVELS[split.shift % 2, split.codes[8:]] == runs[8:]).all()


def test_a_group_off_the_grid_takes_the_neighbour_with_the_least_error_and_the_first_of_equal_ones():
    points = grid("iq1")
    rng = np.random.default_rng(5)
    x = rng.normal(size=(32, 40)).astype(np.float32)
    x[:, 20:] = rng.integers(-1, 2, (32, 20))
    weight = np.where(np.arange(40) < 20, rng.chisquare(1, (32, 40)), 1).astype(np.float32)
    split = one_shift(x, weight)
    down = np.broadcast_to(split.shift == 1, (4, 40))
    snapped = snap(x, weight, split, down, points)
    moved = 0
    for run in range(40):
        for group in range(4):
            some = slice(8 * group, 8 * group + 8)
            key = int(points.key(split.codes[some, run]))
            if points.index[key] >= 0:
                assert snapped.point[group, run] == points.index[key]
                continue
            moved += 1
            levels = DOWN if down[group, run] else UP
            near = points.neighbours[points.first[key] : points.first[key] + points.count[key]]
            errors = []
            for codes in points.points[near]:
                delta = [
                    f32(f32(float(split.scale[run]) * levels[c]) - float(v))
                    for c, v in zip(codes, x[some, run], strict=True)
                ]
                errors.append(sums(f32(f32(float(w) * d) * d) for w, d in zip(weight[some, run], delta, strict=True)))
            assert snapped.point[group, run] == near[int(np.argmin(errors))]
    assert moved > 40


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-13, -1e-40])
def test_a_block_of_zeros_is_zero_bytes_and_decodes_to_minus_zero(name, zero):
    blocks = encoded(np.full(256, zero), name)
    assert not any(blocks.tobytes())
    assert_same_bits(decoded(blocks, name), -np.zeros(256, np.float32))


def test_iq1_m_loses_what_is_below_1e_7_and_iq1_s_does_not():
    w = np.full(256, 9e-8)
    assert not any(encoded(w, "iq1_m").tobytes())
    assert any(encoded(w, "iq1_s")["qs"][0])


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_zeros_beside_others_decodes_to_the_lowest_level_of_one_step(name):
    w = np.zeros(256, np.float32)
    w[:32] = np.linspace(-1, 1, 32)
    blocks = encoded(w, name)
    scale = blocks["d"] if name == "iq1_s" else block_scale_iq1_m(blocks)
    assert (decoded(blocks, name)[64:] == np.float32(-0.875) * np.float32(scale[0])).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_equal_block_comes_out_an_eighth_too_large(name):
    factor = np.float32(1.125 if name == "iq1_s" else 1.1125)
    for sign in (1, -1):
        found = decoded(encoded(np.full(256, sign), name), name)
        assert (found == found[0]).all()
        assert abs(found[0] - sign * factor) < 1e-3


def test_the_scale_of_iq1_m_is_spread_over_four_words():
    blocks = np.zeros(1, rq.get_format("iq1_m").type.struct)
    blocks["scales"][0] = np.array([0x4FFF, 0x3FFF, 0x2FFF, 0x1FFF], "<u2").view(np.uint8)
    assert block_scale_iq1_m(blocks).view(np.uint16).tolist() == [0x1234]


@pytest.mark.parametrize(("name", "largest"), [("iq1_s", 65504 * 15), ("iq1_m", 65504 * 15 / 8)])
def test_scales_beyond_float16_are_refused_with_their_block(name, largest):
    w = np.ones((2, 512), np.float32)
    w[1, 256:] = largest * 0.8
    importance = np.ones(512, np.float32)
    rq.quantize(w, name, imatrix=importance)
    with pytest.raises(rq.ScaleOverflowError, match=r"starts at index \(1, 256\) needs a scale"):
        rq.quantize(w * np.float32(2), name, imatrix=importance)


@pytest.mark.parametrize("name", NAMES)
def test_where_ggml_aborts_the_block_is_refused_by_its_index(name):
    w = np.abs(np.random.default_rng(0).normal(size=(2, 3, 512))).astype(np.float32)
    importance = np.ones((2, 512), np.float32)
    importance[1, 256:] = 3e38  # A / B is ∞ / ∞
    with pytest.raises(rq.RefquantError, match=r"blk\.0.*starts at index \(1, 0, 256\).*ggml aborts"):
        encode(w, rq.get_format(name), "blk.0", imatrix=importance)


def test_iq1_s_demands_an_importance_matrix_and_iq1_m_does_not():
    w = np.ones(256, np.float32)
    with pytest.raises(rq.RefquantError, match="iq1_s: no importance matrix given"):
        rq.quantize(w, "iq1_s")
    rq.quantize(w, "iq1_m")


@pytest.mark.parametrize("name", NAMES)
def test_without_any_importance_a_run_is_empty(name):
    w = np.random.default_rng(1).normal(size=256)
    assert not any(encoded(w, name, np.zeros(256)).tobytes())
    importance = np.ones(256)
    importance[32:64] = 0
    blocks = encoded(w, name, importance)
    assert not blocks["qs"][0, 4:8].any()
    assert (np.unique(decoded(blocks, name)[32:64])).size == 1


@pytest.mark.parametrize("name", NAMES)
def test_blocks_do_not_depend_on_each_other(name):
    rng = np.random.default_rng(2)
    w = (rng.normal(size=(6, 512)) * np.exp(rng.normal(size=(6, 1)) * 3)).astype(np.float32)
    importance = rng.chisquare(1, 512).astype(np.float32)
    together = rq.quantize(w, name, imatrix=importance).parts["blocks"]
    alone = np.stack([rq.quantize(row, name, imatrix=importance).parts["blocks"] for row in w])
    assert_same_bits(together, alone)
    last = rq.quantize(w[:, 256:], name, imatrix=importance[256:]).parts["blocks"]
    assert_same_bits(together[:, last.shape[1] :], last)
