"""Where names go beside the marks of a plot: geometry alone, boxes as rows of (x0, y0, x1, y1)."""

import numpy as np

from refquant.arrays import Array, Float64

PASSES = 3  # over all names: a later one finds the room that the first ones left
RINGS = (3, 8, 14, 21, 29, 38, 50, 65, 82, 102, 125)  # gaps between mark and name that are tried
DIRECTIONS = 16
LEADER_POINTS = 20  # a line from mark to name is as many small boxes
MARK = 5  # what a mark takes to each side

# What a place costs: above all a name that is covered or leaves the picture, then a line across another, then distance.
COVERED, OUTSIDE, CROSSED, FAR = 10.0, 100.0, 3.0, 0.04


def place_labels(marks: Float64, sizes: Float64, bounds: Float64, obstacles: Float64, unit: float) -> Float64:
    """Centres of the names, relative to their marks, that cover as little as can be and are near.

    Args:
        marks: (n, 2) points that carry a name.
        sizes: (n, 2) widths and heights of the names.
        bounds: (4,) the box in which names stay where they can.
        obstacles: (m, 4) boxes besides the marks that names keep away from.
        unit: what RINGS and MARK count in, so that a picture of any resolution looks the same.

    Returns:
        (n, 2) offsets.
    """
    n = len(marks)
    mark_boxes = _boxes(marks, np.full((n, 2), 2 * MARK * unit))
    names, leaders = np.zeros((n, 4)), np.zeros((n, LEADER_POINTS, 4))  # a box of no area overlaps nothing
    offsets = np.zeros((n, 2))
    for i in [*range(n)] * PASSES:
        others = np.arange(n) != i
        apart = (
            others & ~_overlaps(mark_boxes[i : i + 1], mark_boxes)[0]
        )  # a line cannot help touching a mark below its own
        tried, gaps = _offsets(sizes[i], unit)
        boxes = _boxes(marks[i] + tried, np.broadcast_to(sizes[i], tried.shape))  # (tried, 4)
        lines = _leaders(marks[i], tried, boxes, unit)  # (tried, points, 4)
        taken = np.concatenate([mark_boxes, obstacles, names[others], leaders[others].reshape(-1, 4)])
        in_the_way = np.concatenate([mark_boxes[apart], names[others]])
        crossed = _overlaps(lines.reshape(-1, 4), in_the_way).reshape(len(tried), LEADER_POINTS, -1).any(1)
        cost = (
            COVERED * _overlaps(boxes, taken).sum(1)
            + OUTSIDE * ~_inside(boxes, bounds)
            + CROSSED * crossed.sum(1)
            + FAR * gaps
        )
        best = int(np.argmin(cost))
        offsets[i], names[i], leaders[i] = tried[best], boxes[best], lines[best]
    return offsets


def _offsets(size: Float64, unit: float) -> tuple[Float64, Float64]:
    """Centres to try, (tried, 2), on rings around the mark, and the gap of each ring, (tried,)."""
    angles = np.arange(DIRECTIONS) * 2 * np.pi / DIRECTIONS
    directions = np.stack([np.cos(angles), np.sin(angles)], 1)
    to_edge = np.clip(1.5 * directions, -1, 1) * size / 2  # from the name's centre to where its line ends
    rings = [directions * (MARK + ring) * unit + to_edge for ring in RINGS]
    return np.concatenate(rings), np.repeat(np.array(RINGS, np.float64), DIRECTIONS)


def _leaders(mark: Float64, offsets: Float64, boxes: Float64, unit: float) -> Float64:
    """Small boxes along the lines from a mark to each of its places, (tried, points, 4); none where the name stands."""
    steps = np.arange(1, LEADER_POINTS + 1) / LEADER_POINTS
    points = mark + steps[:, None] * offsets[:, None, :]  # (tried, points, 2)
    within = np.asarray(np.all((points >= boxes[:, None, :2]) & (points <= boxes[:, None, 2:]), axis=-1))
    return _boxes(points, np.where(within[..., None], 0.0, unit))


def _boxes(centres: Float64, sizes: Float64) -> Float64:
    return np.concatenate([centres - sizes / 2, centres + sizes / 2], -1)


def _overlaps(a: Float64, b: Float64) -> Array:
    """Which boxes share an area: bool (len(a), len(b))."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray(np.all(low < high, axis=-1))


def _inside(boxes: Float64, bounds: Float64) -> Array:
    above = np.all(boxes[:, :2] >= bounds[:2], axis=1)
    below = np.all(boxes[:, 2:] <= bounds[2:], axis=1)
    return np.asarray(above & below)
