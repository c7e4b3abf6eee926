import json

import pytest

from refquant.cli import main
from refquant.evaluation import DEFAULT_SCHEMES
from refquant.models import embedded

QUICK = ["--formats", "int4, int4-g32", "--limit", "300"]
ROW = ["scheme", "bits_per_weight", "bytes", "sqnr_db", "perplexity", "perplexity_stderr", "delta", "kl_mean"]
ROW += ["same_top", "seconds", "fallbacks"]


def bench(capsys, *arguments):
    code = main(["bench", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments):
    code, out, err = bench(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=pytest.fail)


def test_without_arguments_the_embedded_model_shows_the_first_lesson(capsys):
    found = document(capsys)
    assert (found["model"], found["method"], found["scored_tokens"]) == ("stories260K (embedded)", "per-document", 3800)
    assert "TinyStories" in found["text"]
    assert [row["scheme"] for row in found["rows"]] == ["base", *DEFAULT_SCHEMES]
    perplexities = {row["scheme"]: row["perplexity"] for row in found["rows"]}
    assert perplexities["base"] == pytest.approx(3.1307, abs=1e-3)
    assert perplexities["int4"] > 5 * perplexities["base"]
    assert perplexities["int4-g32-asym"] < 1.15 * perplexities["base"]


def test_the_published_figures_of_every_matrix_quantized(capsys):
    rows = document(capsys, "--formats", "int8,int4", "--embeddings", "quantize")["rows"]
    base, int8, int4 = (row["perplexity"] for row in rows)
    assert base == pytest.approx(3.1307, abs=1e-3)
    assert int8 == pytest.approx(3.1426, abs=1e-3)
    assert int4 == pytest.approx(34.6, rel=0.01)


def test_json_rows_have_the_promised_keys(capsys):
    found = document(capsys, *QUICK)
    assert [list(row) for row in found["rows"]] == [ROW] * 3
    assert found["rows"][0]["sqnr_db"] is None


def test_the_table_states_how_it_was_made_and_is_not_folded(capsys):
    code, out, err = bench(capsys, *QUICK)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["base", "int4", "int4-g32"]
    caption = " ".join(" ".join(lines[5:]).split())
    for part in (
        "stories260K",
        "300 of 302 tokens scored",
        "window 512",
        "BOS before each",
        "kept as stored",
        "sha256",
    ):
        assert part in caption
    _, out, _ = bench(capsys, *QUICK, "--embeddings", "quantize")
    assert "quantized too" in " ".join(out.split())


def test_markdown_is_a_table(capsys):
    _, out, _ = bench(capsys, *QUICK, "--markdown")
    assert out.startswith("| scheme |")
    assert out.count("\n|") == 4


def test_a_model_and_a_text_of_ones_own_are_named(capsys, tmp_path):
    (tmp_path / "a.txt").write_text("Once upon a time there was a little dog. " * 9)
    model = str(embedded.path())
    found = document(capsys, model, "--text", tmp_path / "a.txt", "--formats", "int8-row", "--window", "64")
    assert (found["model"], found["text"]) == (model, str(tmp_path / "a.txt"))
    assert (found["method"], found["window"], found["stride"], found["documents"]) == ("sliding", 64, 32, 1)


def test_a_model_alone_is_measured_on_the_excerpt(capsys):
    found = document(capsys, embedded.path(), "--formats", "int8", "--limit", "200")
    assert (found["documents"], found["method"]) == (2, "per-document")


@pytest.mark.parametrize("name", ["table.svg", "table.png"])
def test_a_plot_is_written_beside_the_table(capsys, tmp_path, name):
    code, out, err = bench(capsys, *QUICK, "--plot", tmp_path / name)
    assert (code, err, "int4-g32" in out) == (0, "", True)
    assert (tmp_path / name).stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "int4,int4-g32-asymm"], "asym"),
        (["--formats", "nf5"], "'nf4'"),
        (["--formats", "int8,,int4"], "a scheme is missing"),
        (["--formats", ""], "a scheme is missing"),
        (["--formats", "int9"], "int9"),
        (["--plot", "a.pdf"], ".png or .svg"),
        (["--plot", "no-such-folder/a.svg"], "no folder"),
        (["no-such-model"], "no-such-model"),
        (["--text", "no-such-text"], "no-such-text"),
        (["--embeddings", "kep"], "'keep'"),
        (["--method", "per_document"], "'per-document'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(capsys, arguments, message):
    code, out, err = bench(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
