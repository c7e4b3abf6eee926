import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.checkpoints import gguf_values
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.checkpoints.imatrix import Imatrix, ImatrixEntry, read_imatrix, write_imatrix
from refquant.errors import CheckpointError, RefquantError


def entry(sums, counts):
    return ImatrixEntry(np.array(sums, np.float32), np.array(counts, np.int64))


TWO = Imatrix(
    {"b.weight": entry([[1, 2, 3], [4, 5, 6]], [10, 0]), "a.weight": entry([[0.5, 7]], [384])},
    ("x.txt", "y.txt"),
    3,
    128,
)


def legacy(entries, chunks=3, dataset=b"x.txt"):
    """A legacy file's bytes: entries of (name, calls, values)."""
    raw = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        raw += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        raw += np.array(values, "<f4").tobytes()
    return raw + (b"" if chunks is None else struct.pack("<i", chunks)) + (
        b"" if dataset is None else struct.pack("<i", len(dataset)) + dataset
    )  # fmt: skip


def same(a, b):
    return (
        list(a.entries) == list(b.entries)
        and all(
            x.sums.tobytes() == y.sums.tobytes() and x.counts.tobytes() == y.counts.tobytes()
            for x, y in zip(a.entries.values(), b.entries.values(), strict=True)
        )
        and (a.datasets, a.chunk_count, a.chunk_size) == (b.datasets, b.chunk_count, b.chunk_size)
    )


def test_an_importance_is_the_mean_and_one_where_nothing_was_seen():
    assert TWO.entries["b.weight"].importance.tolist() == [list(np.float32([1, 2, 3]) / np.float32(10)), [1, 1, 1]]
    assert TWO.entries["b.weight"].covered == 1
    assert TWO.entries["a.weight"].importance[0, 1] == np.float32(7) / np.float32(384)


def test_a_gguf_is_read_as_it_was_written_sorted_by_name(tmp_path):
    write_imatrix(tmp_path / "i.gguf", TWO)
    found = read_imatrix(tmp_path / "i.gguf")
    assert list(found.entries) == ["a.weight", "b.weight"]
    assert same(found, Imatrix(dict(sorted(TWO.entries.items())), TWO.datasets, 3, 128))


@given(
    sums=st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6),
    counts=st.lists(st.integers(0, 2**24), min_size=3, max_size=3),
)
def test_any_entry_survives_a_gguf(tmp_path_factory, sums, counts):
    path = tmp_path_factory.mktemp("i") / "i.gguf"
    one = Imatrix({"w": entry(np.reshape(sums, (3, 2)), counts)}, (), 1, 512)
    write_imatrix(path, one)
    assert same(read_imatrix(path), one)


def test_a_legacy_file_is_read_and_written_to_the_byte(tmp_path):
    raw = legacy([(b"a", 3, [1.5, 2, 3]), (b"b.weight", 1, [0.1])])
    (tmp_path / "i.dat").write_bytes(raw)
    found = read_imatrix(tmp_path / "i.dat")
    assert (found.chunk_count, found.chunk_size, found.datasets) == (3, 0, ("x.txt",))
    assert found.entries["a"].importance.tolist() == [list(np.float32([1.5, 2, 3]) / np.float32(3))]
    write_imatrix(tmp_path / "again.dat", found)
    assert (tmp_path / "again.dat").read_bytes() == raw


def test_old_legacy_files_end_before_the_text_or_the_chunks(tmp_path):
    for chunks, dataset in ((7, None), (None, None), (7, b"")):
        (tmp_path / "i.dat").write_bytes(legacy([(b"a", 0, [2.5])], chunks, dataset))
        found = read_imatrix(tmp_path / "i.dat")
        assert (found.chunk_count, found.datasets) == (chunks or 0, ())
        assert found.entries["a"].importance.tolist() == [[2.5]]  # no calls: as it is


def test_a_legacy_file_gets_means_by_calls_and_leaves_out_what_has_seen_nothing(tmp_path):
    some = Imatrix(
        {"c": entry([[8, 16], [1, 1]], [300, 0]), "d": entry([[5.0]], [0]), "a": entry([[9.0]], [128])}, ("x",), 3, 128
    )
    write_imatrix(tmp_path / "i.dat", some)
    mean = np.float32([8, 16]) / np.float32(300)
    expected = legacy(
        [(b"a", 1, [np.float32(9) / np.float32(128)]), (b"c", 3, [*(mean * np.float32(3)), 3, 3])], 3, b"x"
    )
    assert (tmp_path / "i.dat").read_bytes() == expected


def test_chunks_become_tokens_before_they_fit_a_gguf(tmp_path):
    chunks = Imatrix({"a": entry([[3.0, 6]], [3])}, ("x",), 3, 0)
    with pytest.raises(RefquantError, match="in_tokens"):
        write_imatrix(tmp_path / "i.gguf", chunks)
    tokens = chunks.in_tokens(512)
    assert tokens.entries["a"].counts.tolist() == [1536]
    assert tokens.entries["a"].importance.tobytes() == chunks.entries["a"].importance.tobytes()
    write_imatrix(tmp_path / "i.gguf", tokens)
    with pytest.raises(RefquantError, match="legacy"):
        tokens.in_tokens(512)


def test_entries_are_chosen_by_parts_of_their_names():
    assert list(TWO.selected(include=("a.",)).entries) == ["a.weight"]
    assert list(TWO.selected(exclude=("a.", "none")).entries) == ["b.weight"]
    assert list(TWO.selected().entries) == list(TWO.entries)


@pytest.mark.parametrize(
    ("sums", "counts"),
    [([[1.0]], [-1]), ([[1.0]], [1, 2]), ([1.0], [1]), (np.zeros((0, 2)), [])],
)
def test_an_entry_of_another_shape_or_with_a_negative_count_is_refused(sums, counts):
    with pytest.raises(RefquantError, match="imatrix entry"):
        entry(sums, counts)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "0 bytes long"),
        (b"\0\0", "2 bytes long"),
        (struct.pack("<i", 0), "number of entries at byte 0 is 0"),
        (struct.pack("<i", -1), "is -1; at least 1"),
        (struct.pack("<ii", 1, -5), "length of the name of entry 0 at byte 4 is -5"),
        (struct.pack("<ii", 1, 2**31 - 1), "from 1 to 65536"),
        (struct.pack("<ii", 1, 9) + b"abc", "takes 9 bytes, and 3 are left"),
        (struct.pack("<ii", 1, 1) + b"\xff" + struct.pack("<iif", 1, 1, 0), "byte 8 is not UTF-8"),
        (legacy([(b"a", 1, [])]), "number of values of entry 0 'a' at byte 13 is 0"),
        (legacy([(b"a", 1, [1.0])])[:15], "takes 4 bytes, and 2 are left"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1), "takes 8589934588 bytes, and 0 are left"),
        (legacy([(b"a", 1, [1.0]), (b"a", 1, [2.0])]), "'a' occurs twice"),
        (legacy([(b"a", 1, [1.0])]) + b"more", "4 bytes follow"),
        (legacy([(b"a", 1, [1.0])])[:-2], "takes 5 bytes, and 3 are left"),
        (struct.pack("<i", 2**31 - 1) + bytes(64), "length of the name of entry 0"),
    ],
)
def test_a_broken_legacy_file_is_an_error_that_names_the_place(tmp_path, raw, message):
    (tmp_path / "i.dat").write_bytes(raw)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_imatrix(tmp_path / "i.dat")
    assert str(tmp_path) in str(caught.value)


def test_every_truncation_of_a_legacy_file_is_an_error_but_at_the_ends_that_old_files_have(tmp_path):
    raw = legacy([(b"a", 3, [1.5, 2]), (b"bc", 1, [0.1])])
    read = []
    for end in range(len(raw)):
        (tmp_path / "i.dat").write_bytes(raw[:end])
        try:
            read_imatrix(tmp_path / "i.dat")
            read.append(end)
        except CheckpointError:
            pass
    assert read == [len(raw) - 13, len(raw) - 9]  # before the chunks, and before the text


@given(st.binary(max_size=60))
def test_any_bytes_are_an_imatrix_or_an_error(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("i") / "i.dat"
    path.write_bytes(raw)
    with contextlib.suppress(CheckpointError):
        assert read_imatrix(path).entries


GOOD_METADATA = {
    "imatrix.datasets": gguf_values.strings(["x"]),
    "imatrix.chunk_count": gguf_values.u32(3),
    "imatrix.chunk_size": gguf_values.u32(128),
}


def gguf_of(path, metadata, **tensors):
    sources = [
        TensorSource(
            name.replace("__", "."), array.dtype.name.upper().replace("LOAT", ""), array.shape, lambda a=array: a
        )
        for name, array in tensors.items()
    ]
    write_gguf(path, metadata, sources)
    return path


ONES, TEN = np.ones((2, 3), np.float32), np.full((2, 1), 10, np.float32)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"imatrix.datasets": None}, {}, "'imatrix.datasets' is missing"),
        ({"imatrix.chunk_count": None}, {}, "'imatrix.chunk_count' is missing"),
        ({"imatrix.chunk_size": gguf_values.i32(1)}, {}, "'imatrix.chunk_size' is missing or not a u32"),
        ({"imatrix.datasets": gguf_values.string("x")}, {}, "not an array of strings"),
        ({}, {"a__in_sum2": None, "a__counts": None, "a__weight": ONES}, "no tensor ends in .in_sum2"),
        ({}, {"a__counts": None}, "'a.counts' is missing"),
        ({}, {"a__in_sum2": None}, "'a.in_sum2' is missing"),
        ({}, {"a__in_sum2": ONES.astype(np.float16)}, "'a.in_sum2' is of F16"),
        ({}, {"a__counts": np.ones((4, 1), np.float32)}, "6 sums and 4 counts"),
        ({}, {"a__counts": np.float32([[1], [-1]])}, "counts .*-1.0"),
        ({}, {"a__counts": np.float32([[1], [np.nan]])}, "counts .*nan"),
        ({}, {"a__counts": np.float32([[1], [1e30]])}, "0 to 2.62"),
    ],
)  # fmt: skip
def test_a_gguf_that_is_no_importance_matrix_is_an_error(tmp_path, metadata, tensors, message):
    keys = {key: value for key, value in (GOOD_METADATA | metadata).items() if value is not None}
    arrays = {"a__in_sum2": ONES, "a__counts": TEN} | tensors
    path = gguf_of(tmp_path / "i.gguf", keys, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(CheckpointError, match=message):
        read_imatrix(path)


def test_counts_of_a_gguf_are_rounded_half_away_from_zero(tmp_path):
    path = gguf_of(tmp_path / "i.gguf", GOOD_METADATA, a__in_sum2=ONES, a__counts=np.float32([[0.5], [2.5]]))
    assert read_imatrix(path).entries["a"].counts.tolist() == [1, 3]


def test_a_file_that_is_not_there_or_holds_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_imatrix(tmp_path / "none")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_imatrix(tmp_path)
    with pytest.raises(RefquantError, match="no entries"):
        write_imatrix(tmp_path / "i.gguf", Imatrix({}))
    with pytest.raises(RefquantError, match="nothing to write"):
        write_imatrix(tmp_path / "i.dat", Imatrix({"a": entry([[1.0]], [0])}))
    assert list(tmp_path.iterdir()) == []
