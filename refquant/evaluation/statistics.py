"""Means, shares and percentiles of a figure per token, each with its standard error (spec/evaluation.md).

Tokens are taken as independent draws, as is the custom; neighbours in a text are not, so the real
error is somewhat larger.
"""

import math
from typing import NamedTuple

import numpy as np

from refquant.arrays import Float64


class Estimate(NamedTuple):
    """A value and its standard error, NaN where one token alone gives none."""

    value: float
    stderr: float


class Percentile(NamedTuple):
    """A percentile, and the order statistics one standard error of its rank below and above."""

    value: float
    low: float
    high: float


def mean(sample: Float64) -> Estimate:
    """The mean, and s / √n with the sample's standard deviation s (n − 1 below)."""
    n = len(sample)
    deviation = float(sample.std(ddof=1)) if n > 1 else math.nan
    return Estimate(float(sample.mean()), deviation / math.sqrt(n))


def share(hits: int, n: int) -> Estimate:
    """The share p = hits / n, and √(p · (1 − p) / n)."""
    p = hits / n
    return Estimate(p, math.sqrt(p * (1 - p) / n))


def root_mean_square(sample: Float64) -> Estimate:
    """√m of the mean square m, and the error of m carried through the root: stderr(m) / (2·√m), 0 where m is 0."""
    square = mean(sample * sample)
    root = math.sqrt(square.value)
    return Estimate(root, square.stderr / (2 * root) if root else 0.0)


def percentile(sample: Float64, p: float) -> Percentile:
    """The ⌈p·n⌉-th smallest value, and those ⌈√(n·p·(1 − p))⌉ ranks, the binomial deviation, to either side of it.

    No distribution is assumed. The ranks end at 1 and n: in a sample below 1 / (1 − p) the percentile is its largest
    value, and the interval has no more room above.
    """
    n = len(sample)
    rank = min(max(math.ceil(p * n), 1), n)
    spread = math.ceil(math.sqrt(n * p * (1 - p)))
    ranks = [rank, max(rank - spread, 1), min(rank + spread, n)]
    ordered = np.partition(sample, [r - 1 for r in ranks])
    return Percentile(*(float(ordered[r - 1]) for r in ranks))
