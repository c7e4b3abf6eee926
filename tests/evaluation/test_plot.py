import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.errors import MissingExtraError, RefquantError
from refquant.evaluation.benchmark import Benchmark, Row
from refquant.evaluation.labels import place_labels
from refquant.evaluation.perplexity import Perplexity
from refquant.evaluation.plot import check_plot, draw, save_plot

BASE = Perplexity(3.1307, 0.06, 1.0, 3800, 3920, "sliding", 512, 256, "always", 12, "ab" * 32, 1e4)


def row(scheme, bits, perplexity):
    return Row(scheme, bits, 1000, 20.0, perplexity, perplexity / 40, perplexity - 3.1307, 0.01, 0.9, 0.5)


def table(*rows):
    return Benchmark("model $5", "text", "keep", BASE, (), (row("base", 32, 3.1307), *rows))


CROWDED = table(
    row("int8", 8.005, 3.143),
    row("int8-row", 8.424, 3.1303),
    row("llm-int8", 8.424, 3.1298),
    row("int4", 4.005, 24.89),
    row("int4-row", 4.424, 3.7428),
    row("int4-g64", 4.514, 3.6946),
    row("int4-g32", 5.028, 3.5742),
    row("int4-g32-asym", 5.157, 3.4294),
    row("nf4-b64", 4.5, 3.4599),
    row("nf4-b64-dq", 4.135, 3.4584),
    row("fp4-b64", 4.5, 3.9897),
)


def name_boxes(figure, names):
    (axes,) = figure.axes
    figure.draw_without_rendering()
    texts = [text for text in axes.texts if text.get_text() in names]
    assert len(texts) == len(names)
    # The box of the text alone: the annotation's own box would include the line to its mark.
    return [super(type(text), text).get_window_extent() for text in texts], axes.bbox


def test_names_do_not_overlap_and_stay_in_the_picture():
    names = [r.scheme for r in CROWDED.rows[1:]]
    boxes, frame = name_boxes(draw(CROWDED), names)
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 <= box.x1 <= frame.x1
        assert frame.y0 <= box.y0 <= box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


@given(st.lists(st.tuples(st.floats(0, 900), st.floats(0, 500)), min_size=1, max_size=9))
def test_placed_names_are_disjoint_wherever_the_marks_lie(marks):
    marks = np.array(marks)
    sizes = np.full_like(marks, (70, 12))
    centres = marks + place_labels(marks, sizes, np.array([0.0, 0, 900, 500]), np.empty((0, 4)), 1.0)
    apart = np.abs(centres[:, None] - centres[None]) >= sizes[0] - 1e-9
    assert (apart.any(-1) | np.eye(len(marks), dtype=bool)).all()


def test_a_scheme_ten_times_off_makes_the_axis_logarithmic():
    assert draw(CROWDED).axes[0].get_yscale() == "log"
    assert draw(table(row("int8", 8, 3.2), row("int4-g32", 5, 3.6))).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("A.SVG", b"<?xml")])
def test_a_plot_is_a_whole_file_of_the_kind_its_name_says(name, magic, tmp_path):
    save_plot(CROWDED, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_table_gives_one_svg_to_the_byte(tmp_path):
    for name in ("a.svg", "b.svg"):
        save_plot(CROWDED, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("rows", [(), (row("int2", 2, math.inf),), (row("int8", 8, 3.1307),)])
def test_a_table_of_nothing_that_can_be_drawn_still_gives_a_picture(rows, tmp_path):
    save_plot(table(*rows), tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_a_scheme_without_a_finite_perplexity_is_named_below():
    texts = [text.get_text() for text in draw(table(row("int8", 8, 3.2), row("int2", 2, math.inf))).axes[0].texts]
    assert any("no finite perplexity: int2" in text for text in texts)


def test_an_interrupted_plot_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("old")

    def broken(self, file, **options):
        file.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with pytest.raises(KeyboardInterrupt):
        save_plot(CROWDED, tmp_path / "a.png")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.png", "old")]


def test_a_name_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    with pytest.raises(RefquantError, match=r"\.png or \.svg"):
        check_plot(tmp_path / "a.jpeg")
    with pytest.raises(RefquantError, match="no folder"):
        check_plot(tmp_path / "missing" / "a.png")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'refquant\[plot\]'"):
        check_plot(tmp_path / "a.png")
