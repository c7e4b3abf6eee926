"""The grids of ggml's IQ types and their neighbour lists (spec/ggml_iq.md)."""

import itertools

import numpy as np
import pytest

from refquant.formats.ggml_grid import grid, grid_points
from refquant.formats.tables import load_words

# Width, levels, size, shells of neighbours, length of all lists together.
GRIDS = {
    "iq1": (8, 3, 2048, 3, 327_721),
    "iq2_xxs": (8, 3, 256, 2, 113_157),
    "iq2_xs": (8, 3, 512, 2, 181_721),
    "iq2_s": (8, 3, 1024, 1, 44_716),
    "iq3_xxs": (4, 8, 256, 2, 18_985),
    "iq3_s": (4, 8, 512, 3, 24_733),
}


@pytest.fixture(params=GRIDS)
def name(request):
    return request.param


def test_every_grid_has_its_size(name):
    width, levels, size, _, total = GRIDS[name]
    g = grid(name)
    assert g.points.shape == (size, width)
    assert g.width == width
    assert g.points.max() == g.levels - 1 == levels - 1
    assert len(g.index) == len(g.count) == len(g.first) == levels**width
    assert len(g.neighbours) == g.count.sum() == total


def test_grids_ascend_and_begin_at_zero(name):
    words = load_words(name).astype(int)
    assert words[0] == 0
    assert (np.diff(words) > 0).all()


def test_the_codes_of_a_grid_point_are_the_bits_of_its_word(name):
    bits = 3 if "iq3" in name else 2
    for word, point in zip(load_words(name).tolist(), grid_points(name).tolist(), strict=True):
        assert [word >> bits * i & (1 << bits) - 1 for i in range(len(point))] == point


def test_every_grid_point_is_its_own_nearest(name):
    g = grid(name)
    keys = g.key(g.points.T)
    np.testing.assert_array_equal(g.index[keys], np.arange(len(g.points)))
    assert not g.count[keys].any()
    assert np.count_nonzero(g.index >= 0) == len(g.points)


def test_keys_number_the_lattice(name):
    g = grid(name)
    some = list(itertools.islice(itertools.product(range(g.levels), repeat=g.width), 5000))
    keys = g.key(np.array(some)[:, ::-1].T)  # the first code is the lowest digit
    np.testing.assert_array_equal(keys, np.arange(len(some)))


def test_neighbours_are_the_nearest_shells_in_order_of_distance_and_index(name):
    _, levels, _, shells, _ = GRIDS[name]
    g = grid(name)
    for key in range(0, len(g.index), 29):
        point = np.array([key // levels**i % levels for i in range(g.width)])
        squares = ((g.points.astype(int) - point) ** 2).sum(axis=1).tolist()
        reach = sorted(set(squares))[shells - 1]
        expected = sorted((square, i) for i, square in enumerate(squares) if square <= reach and min(squares) > 0)
        found = g.neighbours[g.first[key] : g.first[key] + g.count[key]]
        assert [i for _, i in expected] == found.tolist()


def test_points_off_the_grid_have_neighbours(name):
    g = grid(name)
    np.testing.assert_array_equal(g.count > 0, g.index < 0)


def test_grids_are_derived_once_and_cannot_be_written_to(name):
    g = grid(name)
    assert grid(name) is g
    for array in (g.points, g.index, g.count, g.first, g.neighbours):
        assert not array.flags.writeable
