"""A benchmark as a picture: perplexity against bits per weight, every scheme with its name beside it."""

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refquant.errors import MissingExtraError, RefquantError
from refquant.evaluation.benchmark import Benchmark, Row
from refquant.evaluation.labels import place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

FORMATS = (".png", ".svg")
LOG_ABOVE = 3.0  # a logarithmic axis where the worst perplexity is more than so many times the best

_INK, _MARK, _FAINT = "#222222", "#2a6fbb", "#999999"


def check_plot(path: Path) -> None:
    """Raise before any work is done where the picture could not be written.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RefquantError: the name does not end in .png or .svg, or its folder does not exist.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "a plot")
    if path.suffix.lower() not in FORMATS:
        raise RefquantError(f"plot {path}: a name that ends in {' or '.join(FORMATS)} is needed")
    if not path.parent.is_dir():
        raise RefquantError(f"plot {path}: there is no folder {path.parent}; make it first")


def save_plot(benchmark: Benchmark, path: Path) -> None:
    """Draw the benchmark into a .png or .svg file, which appears whole or not at all.

    A perplexity that is not finite has no place on the axis; a line below names its scheme.
    """
    check_plot(path)
    from matplotlib import rc_context

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    kind = path.suffix[1:].lower()
    metadata = {"Date": None} if kind == "svg" else None  # one benchmark gives one file, to the byte
    try:
        with rc_context({"svg.hashsalt": "refquant"}):
            draw(benchmark).savefig(temporary, format=kind, dpi=160, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def draw(benchmark: Benchmark) -> "Figure":
    """The picture, on a canvas that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base, *schemes = benchmark.rows
    shown = [row for row in schemes if math.isfinite(row.perplexity)]
    figure = Figure(figsize=(9, 6), layout="tight")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(base.perplexity, color=_FAINT, linestyle="--", linewidth=1, zorder=1)
    _mark(axes, shown)
    _scale(axes, [base, *shown])
    axes.set_xlabel("bits per weight of the quantized matrices, everything stored counted")
    axes.set_ylabel("perplexity ± standard error")
    axes.set_title(_plain(f"{benchmark.model} on {benchmark.text}"), loc="left", color=_INK)
    hidden = [row.scheme for row in schemes if row not in shown]
    base_name = axes.annotate(
        f"base: {base.perplexity:.4g}" + (f"    no finite perplexity: {', '.join(hidden)}" if hidden else ""),
        xy=(0, base.perplexity), xycoords=("axes fraction", "data"), xytext=(4, -4), textcoords="offset points",
        va="top", color=_FAINT, fontsize=9,
    )  # fmt: skip
    figure.draw_without_rendering()
    _write_names(axes, shown, base_name)
    return figure


def _mark(axes: "Axes", rows: Sequence[Row]) -> None:
    errors = [0 if math.isnan(row.perplexity_stderr) else row.perplexity_stderr for row in rows]
    bits, perplexities = [row.bits_per_weight for row in rows], [row.perplexity for row in rows]
    axes.errorbar(
        bits, perplexities, yerr=[min(error, p / 2) for error, p in zip(errors, perplexities, strict=True)],
        fmt="o", color=_MARK, ecolor=_FAINT, elinewidth=1, capsize=2, markersize=5, zorder=2,
    )  # fmt: skip


def _scale(axes: "Axes", rows: Sequence[Row]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    values = [row.perplexity for row in rows]
    axes.margins(x=0.12, y=0.12)
    axes.grid(color=_FAINT, alpha=0.25, linewidth=0.5)
    if max(values) > LOG_ABOVE * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _write_names(axes: "Axes", rows: Sequence[Row], base_name: "Annotation") -> None:
    """Write each scheme beside its mark, clear of the other marks, names and the line of the base."""
    points = [(row.bits_per_weight, row.perplexity) for row in rows]
    names = [
        axes.annotate(
            _plain(row.scheme), point, (0, 0), textcoords="offset points",
            fontsize=9, color=_INK, ha="center", va="center",
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        for row, point in zip(rows, points, strict=True)
    ]  # fmt: skip
    pixel = axes.figure.dpi / 72  # pixels in a point
    line = axes.transData.transform(base_name.xy)[1]
    offsets = place_labels(
        marks=np.array([axes.transData.transform(point) for point in points]).reshape(-1, 2),
        sizes=np.array([name.get_window_extent().size for name in names]).reshape(-1, 2),
        bounds=np.array(axes.bbox.extents),
        obstacles=np.array(
            [(axes.bbox.x0, line - pixel, axes.bbox.x1, line + pixel), base_name.get_window_extent().extents]
        ),
        unit=pixel,
    )
    for name, offset in zip(names, offsets, strict=True):
        name.set_in_layout(False)
        name.set_position(offset / pixel)


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
