"""A benchmark as text: cells for a terminal, Markdown, and a JSON document."""

import dataclasses
import math
from typing import Any

from refquant.evaluation.benchmark import Benchmark, Row
from refquant.evaluation.divergence import Divergence
from refquant.evaluation.llama_kl import LlamaKl
from refquant.evaluation.perplexity import Perplexity

COLUMNS = ("scheme", "bits/w", "bytes", "SQNR", "perplexity", "change", "KL mean", "top %", "s")

_EMBEDDINGS = {
    "keep": "Embedding and head are kept as stored",
    "quantize": "Embedding and head are quantized too, a tied pair once",
}


def cells(benchmark: Benchmark) -> list[list[str]]:
    """The table's rows as text, in the order of COLUMNS."""
    return [_row_cells(row) for row in benchmark.rows]


def caption(benchmark: Benchmark) -> str:
    """What was measured and how, in whole sentences."""
    base = benchmark.base
    documents = "one document" if base.documents == 1 else f"{base.documents} documents, each on its own"
    return (
        f"{benchmark.model} on {benchmark.text}: {documents}, {base.scored_tokens:,} of {base.tokens:,} tokens scored, "
        f"{describe(base)}. "
        f"{_EMBEDDINGS[benchmark.embeddings]}{_file_types(benchmark)}. "
        "bits/w: everything stored for the quantized matrices, over their weights; bytes: the whole model, "
        "other tensors as the checkpoint stores them; SQNR in dB; ±: one standard error; "
        "KL mean: KL(base ‖ scheme) in nats; top %: where base and scheme find the same token likeliest."
        + "".join(map(_fallbacks, benchmark.rows))
    )


def _file_types(benchmark: Benchmark) -> str:
    """What is different about rows in upper case, where there are such."""
    if not any(row.scheme != row.scheme.lower() for row in benchmark.rows):
        return ""
    return "; in the rows of file types their rule decides for both, and they count in bits/w and SQNR"


def _fallbacks(row: Row) -> str:
    """Which types stand in for those of a file type's rule."""
    if not row.fallbacks:
        return ""
    each = ", ".join(f"{some.tensors} × {some.used} for {some.asked}" for some in row.fallbacks)
    return f" {row.scheme} fell back, where rows hold no whole blocks of its type: {each}."


def describe(measured: Perplexity) -> str:
    """Method, window, stride, BOS rule and hash, so that another program can measure the same."""
    stride = f", stride {measured.stride}" if measured.method == "sliding" else ""
    bos = "BOS before each document" if measured.bos == "always" else "no BOS added"
    return f"{measured.method} window {measured.window}{stride}, {bos}, ids sha256 {measured.ids_sha256[:16]}…"


def markdown(benchmark: Benchmark) -> str:
    """The table in Markdown, with its caption below."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *cells(benchmark)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{_escape(caption(benchmark))}\n"


def document(benchmark: Benchmark) -> dict[str, Any]:
    """The table as JSON: model, text, how it was measured, and the rows; what is not finite is null."""
    measured = ("method", "window", "stride", "bos", "documents", "tokens", "scored_tokens", "ids_sha256")
    return {
        "model": benchmark.model,
        "text": benchmark.text,
        "embeddings": benchmark.embeddings,
        **{name: getattr(benchmark.base, name) for name in measured},
        "rows": [record(row) for row in benchmark.rows],
    }


def record(row: Row | Perplexity | Divergence | LlamaKl) -> dict[str, Any]:
    """A record's fields as JSON values: NaN and infinities become null."""
    fields = dataclasses.asdict(row)
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in fields.items()
    }


def number(value: float) -> str:
    """A perplexity: five digits, and never more than four decimals."""
    return f"{value:.{max(0, 4 - len(str(int(value))) + 1)}f}" if value < 1e5 else f"{value:.4g}"


def with_error(value: float, stderr: float) -> str:
    """`value ± stderr`; the error alone is left out where there is none."""
    if math.isnan(stderr):
        return number(value)
    return f"{number(value)} ± {stderr:.{2 if stderr >= 1 else 3}f}"


def _row_cells(row: Row) -> list[str]:
    return [
        row.scheme,
        f"{row.bits_per_weight:.3f}",
        f"{row.bytes:,}",
        "—" if math.isinf(row.sqnr_db) else f"{row.sqnr_db:.2f}",
        with_error(row.perplexity, row.perplexity_stderr),
        "—" if row.scheme == "base" else f"{'+' if row.delta >= 0 else '−'}{number(abs(row.delta))}",
        f"{row.kl_mean:.5f}",
        f"{100 * row.same_top:.2f}",
        f"{row.seconds:.2f}",
    ]


def _escape(text: str) -> str:
    """Names are the user's: none of their characters may become Markdown."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>#|" else character for character in text)
