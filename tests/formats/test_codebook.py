"""Code books: the special cases of spec/codebook.md, one by one. The general properties are in test_properties.py."""

import hashlib

import numpy as np
import pytest
from hypothesis import given

import refquant as rq
from refquant.conformance.bits import assert_same_bits, assert_same_parts
from refquant.conformance.code_changes import midpoints, tensors
from refquant.conformance.definitions import codes, stored_codes
from refquant.formats import tables
from refquant.formats.cascade_sum import cascade_sum, mean
from refquant.formats.codebook import BLOCK_SIZES, FourBit
from refquant.formats.tables import load_table

FLOAT32_MAX = np.finfo(np.float32).max
LEAST = np.float32(1e-38)


def float32(*words):
    return np.array(words, np.uint32).view(np.float32)


def nibbles(q):
    packed = q.parts["codes"]
    return np.stack([packed >> 4, packed & 15], axis=-1).ravel()


def one_block(table, *numbers, size=64):
    """A full block that starts with 1 and the numbers, and is zero from there on: its absmax is 1."""
    w = np.zeros(size, np.float32)
    w[: len(numbers) + 1] = [1, *numbers]
    return rq.quantize(w, f"{table}-b{size}")


@pytest.mark.parametrize(
    ("scheme", "table"), [("nf4-b32", "nf4"), ("fp4-b32", "fp4"), ("int8-dynamic-b64", "dynamic8")]
)
def test_numbers_next_to_where_the_code_changes_get_the_code_of_the_page(scheme, table):
    fmt = rq.get_format(scheme)

    @given(tensors(table, fmt.block_size))
    def check(w):
        parts = rq.quantize(w, fmt).parts
        assert_same_bits(stored_codes(fmt, parts, w.shape), np.array(codes(fmt, w), np.uint8))

    check()


def test_a_block_by_hand():
    w = np.array([3.0, -3.0, 0.0, 0.5, 1.5, -0.75] + [0.0] * 26, np.float32)
    q = rq.quantize(w, "nf4-b32")  # units 1, −1, 0, 0.1667, 0.5, −0.25
    assert q.parts["absmax"].tolist() == [3.0]
    assert nibbles(q)[:6].tolist() == [15, 0, 7, 9, 12, 4]
    assert q.parts["codes"].tobytes().hex() == "f079c4" + "77" * 13  # the first weight in the high nibble
    assert_same_bits(q.dequantize()[:6], np.float32(3) * load_table("nf4")[[15, 0, 7, 9, 12, 4]])
    q = rq.quantize(w, "fp4-b32")  # ±1, 0, 1/6, 1/2, −1/4
    assert q.parts["codes"].tobytes().hex() == "3b065f" + "00" * 13


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_a_midpoint_goes_to_the_lower_value_and_its_upper_neighbour_to_the_higher(table):
    order = np.argsort(load_table(table), kind="stable")
    for rank, exact in enumerate(midpoints(table)):
        tie = np.float32(exact)
        below, above = np.nextafter(tie, np.float32([-2, 2]))
        found = nibbles(one_block(table, below, tie, above))[1:4]
        assert found.tolist() == [order[rank], order[rank], order[rank + 1]], f"midpoint {tie}"


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("size", [31, 32])
def test_the_short_last_block_divides_and_a_full_one_multiplies_with_the_reciprocal(table, size):
    top = np.float32(1.1)
    candidates = (midpoints(table).astype(np.float32)[:, None] * top * (1 + np.arange(-4, 5) * 2.0**-24)).astype(
        np.float32
    )
    w = candidates.ravel()
    by_division, by_product = w / top, w * (np.float32(1) / top)
    edges = midpoints(table).astype(np.float32)
    told_apart = np.searchsorted(edges, by_division) != np.searchsorted(edges, by_product)
    assert told_apart.any(), "the examples must tell the two apart"
    units = by_division if size < 32 else by_product
    order = np.argsort(load_table(table), kind="stable")
    for x, unit in zip(w[told_apart], units[told_apart], strict=True):
        block = np.full(size, top)
        block[5] = x
        assert nibbles(rq.quantize(block, f"{table}-b32"))[5] == order[np.searchsorted(edges, unit)]


def test_the_smallest_positive_number_gets_fp4_code_8_and_decodes_to_minus_zero():
    q = one_block("fp4", 1e-45, -1e-45, 0.0, -0.0, 0.0026, -0.0026)
    assert nibbles(q)[1:7].tolist() == [8, 0, 0, 0, 8, 0]
    assert_same_bits(q.dequantize()[1:7], float32(0x80000000, 0, 0, 0, 0x80000000, 0))


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_full_block_of_zeros_stores_zero_and_a_short_one_stores_1e_38(table, zero):
    q = rq.quantize(np.full(33, zero, np.float32), f"{table}-b32")
    assert_same_bits(q.parts["absmax"], np.array([0, LEAST], np.float32))
    assert set(nibbles(q)) == {7 if table == "nf4" else 0}
    assert_same_bits(q.dequantize(), np.zeros(33, np.float32))


def test_a_full_block_below_1e_38_is_divided_by_1e_38_but_keeps_its_absmax():
    w = np.full(32, 5e-39, np.float32)
    q = rq.quantize(w, "nf4-b32")
    assert_same_bits(q.parts["absmax"], w[:1])
    assert set(nibbles(q)) == {12}  # 0.5 is nearest to 0.4407, and 15 would have been right
    assert rq.quantize(w[:31], "nf4-b32").parts["absmax"][0] == LEAST


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("n", [1, 2, 3, 31, 32, 33, 63, 65])
def test_an_odd_count_is_padded_with_the_code_of_zero(table, n):
    q = rq.quantize(np.ones(n, np.float32), f"{table}-b32")
    assert q.parts["codes"].shape == ((n + 1) // 2,)
    if n % 2:
        assert nibbles(q)[-1] == (7 if table == "nf4" else 0)
    assert_same_bits(q.dequantize(), np.ones(n, np.float32))


@pytest.mark.parametrize("scheme", ["nf4-b32", "fp4-b32", "int8-dynamic-b32"])
def test_blocks_run_on_from_row_to_row(scheme):
    w = np.random.default_rng(5).normal(size=(3, 40)).astype(np.float32)
    q = rq.quantize(w, scheme)
    assert q.parts["absmax"].shape == (4,)
    assert_same_parts(dict(q.parts), dict(rq.quantize(w.ravel(), scheme).parts))
    assert_same_bits(q.parts["absmax"][1:2], np.abs(w.ravel()[32:64]).max(keepdims=True))


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_every_byte_decodes_to_two_values_of_the_table(table):
    byte = np.arange(256, dtype=np.uint8)
    for absmax in float32(0x3F800000, 0x7F7FFFFF, 0x00800000, 0x00000001, 0x80000000, 0x7F800000):
        parts = {"codes": byte, "absmax": np.repeat(absmax, 8)}
        expected = np.stack([load_table(table)[byte >> 4], load_table(table)[byte & 15]], axis=-1).ravel()
        with np.errstate(invalid="ignore"):
            assert_same_bits(rq.dequantize(parts, table, (512,)), expected * absmax)


def test_every_code_of_the_dynamic_map_decodes_to_its_value():
    parts = {"codes": np.arange(256, dtype=np.uint8), "absmax": np.array([0.7, 1e-40], np.float32)}
    decoded = rq.dequantize(parts, "int8-dynamic-b128", (256,))
    assert_same_bits(decoded, load_table("dynamic8") * np.repeat(parts["absmax"], 128))


def test_zero_becomes_a_small_number_in_int8_dynamic():
    q = one_block("int8-dynamic", 0.0, -0.0, 1e-7)
    assert q.parts["codes"][:5].tolist() == [255, 131, 131, 131, 131]
    assert q.dequantize()[1] == load_table("dynamic8")[131] == np.float32(2.12499981e-05)


def test_int8_dynamic_has_no_minus_one():
    q = rq.quantize(-np.ones(32, np.float32), "int8-dynamic-b32")
    assert set(q.parts["codes"]) == {0}
    assert q.dequantize()[0] == np.float32(-0.99296874)


def test_a_block_of_zeros_in_int8_dynamic_has_code_0_and_decodes_to_minus_zero():
    q = rq.quantize(np.zeros(40, np.float32), "int8-dynamic-b32")
    assert not q.parts["codes"].any()
    assert_same_bits(q.dequantize(), np.full(40, -0.0, np.float32))


def test_a_reciprocal_that_overflows_leaves_int8_dynamic_the_two_end_codes():
    tiny = np.float32(2.0**-128)  # its reciprocal is infinite
    w = np.array([tiny, -tiny / 2, 0.0, 1e-45] + [0.0] * 28, np.float32)
    q = rq.quantize(w, "int8-dynamic-b32")
    assert q.parts["codes"][:4].tolist() == [255, 0, 0, 255]
    assert rq.quantize(np.nextafter(w, np.float32(1)), "int8-dynamic-b32").parts["codes"][2] != 0


def test_a_fused_product_and_sum_would_give_the_same_bin():
    # All values of (unit + 1) / 2: multiples of 2^-25 below one half, of 2^-24 from there to 1.
    for numerators, denominator in ((np.arange(1 << 24), 25), (np.arange(1 << 23, (1 << 24) + 1), 24)):
        for some in np.array_split(numerators, 64):
            half = np.ldexp(some.astype(np.float32), -denominator)
            twice_rounded = half * np.float32(65535) + np.float32(0.5)
            once_rounded = (half.astype(np.float64) * 65535 + 0.5).astype(np.float32)  # exact in binary64
            np.testing.assert_array_equal(twice_rounded.astype(np.uint16), once_rounded.astype(np.uint16))


def test_double_quantization_by_hand():
    w = np.repeat(np.array([1, 2, 3, 6], np.float32), 32)
    q = rq.quantize(w, "nf4-b32-dq")
    assert q.parts["nested_offset"].tolist() == [3.0]  # differences −2, −1, 0, 3
    assert q.parts["nested_absmax"].tolist() == [3.0]
    values = load_table("dynamic8")[q.parts["absmax"]]
    np.testing.assert_allclose(values, [-2 / 3, -1 / 3, 2.125e-5, 1], atol=0.01)
    assert_same_bits(q.dequantize()[::32], values * np.float32(3) + np.float32(3))


def test_equal_blocks_keep_their_absmax_through_double_quantization():
    w = np.full(64 * 300, -0.375, np.float32)  # few bits, so that the mean is exact
    q = rq.quantize(w, "nf4-dq")
    assert_same_bits(q.parts["nested_offset"], np.float32([0.375]))
    assert_same_bits(q.dequantize(), w)


def test_double_quantization_of_one_block_and_of_none():
    q = rq.quantize(np.array([0.1, -0.7], np.float32), "fp4-dq")
    assert_same_bits(q.parts["nested_offset"], np.float32([0.7]))
    assert q.dequantize()[1] == np.float32(-0.7)
    q = rq.quantize(np.zeros((0, 8), np.float32), "fp4-dq")
    assert [part.size for part in q.parts.values()] == [0, 0, 0, 1]
    assert_same_bits(q.parts["nested_offset"], np.zeros(1, np.float32))
    assert q.dequantize().shape == (0, 8)


def test_double_quantization_can_make_an_absmax_negative():
    w = np.ones(32 * 256, np.float32)
    w[32:64] = 1e-3
    w[64:96] = 255.0
    q = rq.quantize(w, "nf4-b32-dq")
    assert q.dequantize()[40] < 0, "a block of small weights beside a large one changes its sign, as in bitsandbytes"


def test_maxima_whose_sum_overflows_are_refused_with_double_quantization_alone():
    w = np.full((2, 64), FLOAT32_MAX)
    assert_same_bits(rq.quantize(w, "nf4").dequantize(), w)
    with pytest.raises(
        rq.ScaleOverflowError, match=r"blk\.0: the maxima of 2 blocks add up to more than .*leave out dq"
    ):
        rq.quantize(w, "nf4-dq", name="blk.0")


@pytest.mark.parametrize("n", [*range(1, 70), 1000, 4097])
def test_the_sum_is_exact_where_every_order_is_exact(n):
    x = np.random.default_rng(n).integers(0, 4096, n).astype(np.float32)
    assert cascade_sum(x) == x.sum(dtype=np.float64)
    assert mean(x) == np.float32(x.sum(dtype=np.float64) / n)


def test_the_sum_runs_over_eight_lanes_of_four_streams():
    # 2^24 absorbs a one that is added to it alone, and not two ones that were added to each other before.
    big = np.float32(2**24)
    x = np.zeros(64, np.float32)
    x[[0, 32]] = big, 1  # the same lane and stream: the one is lost
    assert cascade_sum(x) == big
    x[8] = 1  # the lane's next stream, which is added to the first at the end: lost as well
    assert cascade_sum(x) == big
    x[40] = 1  # that stream's own sum is 2 now, and survives
    assert cascade_sum(x) == big + 2


def spread_out(n):
    """n numbers of either sign over eight binades, the same everywhere."""
    unit = np.arange(1, n + 2, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32) / 2**32
    return ((unit[:n] - 0.5) * np.exp2(np.floor(unit[1:] * 8))).astype(np.float32)


# torch.from_numpy(numpy.abs(spread_out(n))).mean() of torch 2.13.0 on one thread.
MEANS_OF_TORCH = [
    (2, 0x41090591),
    (5, 0x40D3DBE3),
    (8, 0x40FD2487),
    (9, 0x40E17573),
    (11, 0x40FAECD9),
    (14, 0x40E8CAF9),
    (23, 0x4107365F),
    (31, 0x4108E879),
    (39, 0x41014785),
    (513, 0x41052E7A),
    (777, 0x4105D355),
    (2100, 0x4105E20D),
    (4096, 0x410602FD),
    (8197, 0x41061C7A),
    (65537, 0x410623AE),
    (100001, 0x41062526),
    (300007, 0x41062509),
]


@pytest.mark.parametrize(("n", "bits"), MEANS_OF_TORCH)
def test_means_have_the_bits_of_torch(n, bits):
    assert_same_bits(np.array([mean(np.abs(spread_out(n)))]), float32(bits))


# SHA-256 of the parts, in the order of the layout, that bitsandbytes 0.50.2 makes of spread_out(100001).
PARTS_OF_BITSANDBYTES = [
    ("nf4-b64", "825cff29d2e6440097fbee8ccad7164a20c92a94f2e086cc86b243c973b033ad"),
    ("nf4-b32-dq", "a3de8fde8de60132d2c3845bb5f3127d0909154352efb171036ccb1b71ff8fa1"),
    ("fp4-b128", "3feaeecb3f40645213113959f0542e66c27b60a97970c334435ffb5bb637d637"),
    ("fp4-b64-dq", "b6967dcba0e07980fb053e6273d37935e91534a3e4c8e4e40a10b944c9bee322"),
    ("int8-dynamic-b4096", "485b0234646f6ea3bb82e11e76c12acf7cf31dbcb5bdc8e27df8d02408ea66d5"),
    ("int8-dynamic-b64", "de259da139deadf6411502e8d5f883b2c9060147ff06696a4b0327cce835d15f"),
]


@pytest.mark.parametrize(("scheme", "digest"), PARTS_OF_BITSANDBYTES)
def test_parts_have_the_bits_of_bitsandbytes(scheme, digest):
    parts = rq.quantize(spread_out(100_001), scheme).parts
    assert hashlib.sha256(b"".join(part.tobytes() for part in parts.values())).hexdigest() == digest


def test_the_dynamic_map_is_what_its_recipe_gives():
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 2**decade
        width = np.float32((np.float32(1) - np.float32(0.1)) / np.float32(steps))
        edges = np.array(
            [
                np.float32(np.float64(np.float32(0.1)) + np.float64(width) * k)
                if k < (steps + 1) // 2
                else np.float32(1 - np.float64(width) * (steps - k))
                for k in range(steps + 1)
            ]
        )
        means = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (decade - 6))
        values += [*means, *-means]
    assert_same_bits(load_table("dynamic8").copy(), np.sort(np.array(values, np.float32)))


def test_fp4_is_a_table_of_twelfths():
    twelfths = np.array([0, 1 / 16, 8, 12, 4, 6, 2, 3], np.float32)
    assert_same_bits(load_table("fp4").copy(), np.append(twelfths, -twelfths) / np.float32(12))


def test_a_damaged_table_is_refused(tmp_path, monkeypatch):
    for name in ("nf4.txt", "SHA256SUMS"):
        (tmp_path / name).write_bytes((tables._FOLDER / name).read_bytes())
    monkeypatch.setattr(tables, "_FOLDER", tmp_path)
    undamaged = tables.load_table.__wrapped__("nf4")
    assert_same_bits(undamaged, load_table("nf4"))
    (tmp_path / "nf4.txt").write_bytes((tmp_path / "nf4.txt").read_bytes().replace(b"3f800000", b"3f800001"))
    with pytest.raises(rq.RefquantError, match=r"nf4\.txt is not what SHA256SUMS says"):
        tables.load_table.__wrapped__("nf4")


def test_tables_cannot_be_written_to():
    for name in ("nf4", "fp4", "dynamic8"):
        assert not load_table(name).flags.writeable


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("name", ["nf4", "fp4", "int8-dynamic"])
def test_schemes_print_their_block_size_and_parse_back(name, size):
    fmt = rq.get_format(name, block_size=size)
    assert str(fmt) == f"{name}-b{size}"
    assert rq.get_format(str(fmt)) == fmt


def test_short_forms_imply_block_sizes():
    assert str(rq.get_format("nf4")) == "nf4-b64"
    assert str(rq.get_format("fp4-dq")) == str(rq.get_format("fp4-dq-b64")) == "fp4-b64-dq"
    assert str(rq.get_format("int8-dynamic")) == "int8-dynamic-b4096"


@pytest.mark.parametrize("scheme", ["nf4-b16", "fp4-b48", "nf4-b8192-dq", "int8-dynamic-b1", "nf4-b64.5"])
def test_other_block_sizes_are_refused_and_the_known_ones_named(scheme):
    with pytest.raises(rq.RefquantError, match=r"block_size = .* given; one of \[32, 64, .*4096\]"):
        rq.get_format(scheme)


def test_another_table_is_refused():
    with pytest.raises(rq.UnknownNameError, match="unknown 4-bit table 'nf5'; did you mean 'nf4'"):
        FourBit(64, "nf5")


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [("nf4", 4.5), ("fp4-b32", 5.0), ("nf4-dq", 4 + 8.125 / 64), ("int8-dynamic", 8.0078125), ("nf4-b4096", 4.0078125)],
)
def test_bits_per_weight_counts_everything_stored(scheme, bits):
    fmt = rq.get_format(scheme)
    assert fmt.bits_per_weight == bits
    q = rq.quantize(np.ones((1024, 1024), np.float32), fmt)
    offset = 32 / 2**20 if "dq" in scheme else 0
    assert q.bits_per_weight == bits + offset


def test_parts_of_the_wrong_size_or_dtype_are_refused():
    parts = dict(rq.quantize(np.ones(100, np.float32), "nf4-dq").parts)
    with pytest.raises(rq.PartsError, match="part 'absmax' is float32"):
        rq.dequantize(parts | {"absmax": parts["absmax"].astype(np.float32)}, "nf4-dq", (100,))
    with pytest.raises(rq.PartsError, match="part 'codes'"):
        rq.dequantize(parts, "nf4-dq", (102,))
    with pytest.raises(rq.PartsError, match="the format stores"):
        rq.dequantize({"codes": parts["codes"]}, "nf4-dq", (100,))
