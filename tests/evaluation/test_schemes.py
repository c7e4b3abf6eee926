"""File types of llama.cpp as rows of a benchmark, on the embedded model."""

import math
import tempfile
from pathlib import Path

import pytest

import refquant as rq
from refquant.conversion import FileType, Options, convert
from refquant.errors import RefquantError, UnknownNameError
from refquant.evaluation import benchmark, perplexity, table
from refquant.evaluation.schemes import Fallback, name_of, parse_scheme, quantized
from refquant.formats.base import Format
from refquant.models import embedded

MODEL = rq.load_model(embedded.path())
IDS = MODEL.tokenizer.encode("Once upon a time there was a little girl named Lily. " * 3)


@pytest.mark.parametrize(
    ("scheme", "name"), [("q4_0", "q4_0"), ("Q4_0", "Q4_0"), ("Q4_K", "Q4_K_M"), ("nf4", "nf4-b64")]
)
def test_upper_case_names_a_file_type_and_lower_case_a_format(scheme, name):
    parsed = parse_scheme(scheme)
    assert isinstance(parsed, FileType if scheme.isupper() else Format)
    assert name_of(parsed) == name
    assert parse_scheme(parsed) is parsed


def test_a_misspelt_file_type_is_told_near_names():
    with pytest.raises(UnknownNameError, match="Q4_K_M"):
        parse_scheme("Q4_K_N")


def test_a_row_of_a_file_type_is_the_file_that_quantize_writes(tmp_path):
    row = benchmark(MODEL, ["Q4_0"], IDS).rows[1]
    convert(embedded.path(), tmp_path / "model.gguf", "Q4_0", options=Options(allow_requantize=True))
    loaded = rq.load_model(tmp_path / "model.gguf")
    assert row.perplexity == perplexity(loaded, IDS).perplexity
    assert row.bytes == loaded.nbytes
    matrices = [loaded.weights[name] for name in (*loaded.linear_names, *loaded.embedding_names)]
    bits = 8 * sum(w.nbytes for w in matrices) / sum(math.prod(w.shape) for w in matrices)
    assert row.bits_per_weight == pytest.approx(bits)
    assert row.sqnr_db > 15


def test_the_fallbacks_of_a_file_type_are_counted_and_told():
    result = benchmark(MODEL, ["Q4_0"], IDS)
    assert result.rows[1].fallbacks == (Fallback("Q4_0", "F16", 5), Fallback("Q6_K", "Q8_0", 1))
    assert "Q4_0 fell back, where rows hold no whole blocks of its type: 5 × F16 for Q4_0" in table.caption(result)
    assert table.document(result)["rows"][1]["fallbacks"][0] == {"asked": "Q4_0", "used": "F16", "tensors": 5}


def test_the_temporary_file_is_gone_when_the_row_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with quantized(MODEL, parse_scheme("Q8_0"), "keep") as made:
        path = Path(made.model.path)
        assert path.is_relative_to(tmp_path)
        assert path.is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_format_whose_blocks_do_not_divide_the_rows_is_refused_before_the_base_runs():
    with pytest.raises(RefquantError, match=r"model\.layers\.0\.\S+: q4_k: shape \(64, 64\) given; rows"):
        benchmark(MODEL, ["q4_k"], IDS, on_progress=lambda *_: pytest.fail("the base ran"))
