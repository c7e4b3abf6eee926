"""The strategies reach the places that they claim to: `find` fails where no drawn tensor is such a place."""

import numpy as np
import pytest
from hypothesis import Phase, find, settings

import refquant as rq
from refquant.conformance.bounds import encodable_range, normal_range
from refquant.conformance.strategies import raw_parts, weights

SEARCH = settings(max_examples=2000, database=None, derandomize=True, phases=[Phase.generate])
SMALLEST_NORMAL = np.finfo(np.float32).tiny

PLACES = {
    "a subnormal": lambda w: ((w != 0) & (np.abs(w) < SMALLEST_NORMAL)).any(),
    "a minus zero": lambda w: (np.signbit(w) & (w == 0)).any(),
    "only zeros": lambda w: w.size > 1 and not w.any(),
    "the largest binade": lambda w: (np.abs(w) >= 2.0**127).any(),
    "one side of zero": lambda w: w.size > 2 and len(np.unique(w)) > 2 and (w > 0).all(),
    "all equal": lambda w: w.size > 2 and w.flat[0] != 0 and (w == w.flat[0]).all(),
    "an outlier": lambda w: w.size > 2 and w.any() and np.abs(w).max() > 1e6 * np.median(np.abs(w)) > 0,
    "several rows": lambda w: w.ndim > 1 and w.size > w.shape[-1] > 1,
    "three axes": lambda w: w.ndim == 3,
}


@pytest.mark.parametrize("place", PLACES)
def test_drawn_weights_reach(place):
    find(weights(rq.get_format("int4-row")), PLACES[place], settings=SEARCH)


def steps(w, scheme):
    fmt = rq.get_format(scheme)
    scale = np.float64(rq.quantize(w, fmt).dequantize().dtype.type(0)) + rq.quantize(w, fmt).parts["scales"]
    return w / np.where(scale > 0, scale, 1)


@pytest.mark.parametrize("scheme", ["int4-row", "int8-row", "int8-row-asym", "int2-row"])
def test_drawn_weights_reach_ties_of_the_format(scheme):
    def has_tie(w):
        found = steps(w, scheme)
        return ((found % 1 == 0.5) & (np.abs(found) > 1)).any() if "2" not in scheme else (found % 1 == 0.5).any()

    fmt = rq.get_format(scheme)
    find(weights(fmt, *normal_range(fmt)), has_tie, settings=SEARCH)


def test_drawn_weights_reach_blocks_with_distinct_scales_and_a_short_last_block():
    fmt = rq.get_format("int4-g8")

    def distinct(w):
        scales = rq.quantize(w, fmt).parts["scales"]
        return w.shape[-1] % 8 and scales.shape[-1] >= 3 and len(np.unique(scales[scales > 0])) == scales.size

    find(weights(fmt, *encodable_range(fmt)), distinct, settings=SEARCH)


@pytest.mark.parametrize("special", [np.isnan, np.isinf, lambda s: (s != 0) & (np.abs(s) < SMALLEST_NORMAL)])
def test_drawn_parts_reach_every_kind_of_scale(special):
    fmt = rq.get_format("int4-g8")
    found = lambda drawn: bool(special(drawn[0]["scales"]).any())  # noqa: E731
    find(raw_parts(fmt), found, settings=SEARCH)
