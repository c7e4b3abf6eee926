import json
import math

import numpy as np
import pytest

from refquant.errors import NonFiniteError, ScaleOverflowError, UnknownNameError
from refquant.evaluation import benchmark, divergence, perplexity, quantize_model, table
from refquant.formats.registry import get_format
from refquant.quantize import quantize

from .memory_model import memory_model

IDS = np.random.default_rng(0).integers(0, 11, 200)
MODEL = memory_model(scale=0.5)
KEYS = {
    "scheme",
    "bits_per_weight",
    "bytes",
    "sqnr_db",
    "perplexity",
    "perplexity_stderr",
    "delta",
    "kl_mean",
    "same_top",
    "seconds",
    "fallbacks",
}


def bench(*schemes, **options):
    return benchmark(MODEL, schemes, IDS, **options)


def test_the_first_row_is_the_base_and_the_rest_keep_their_order():
    rows = bench("int4", "int8-row", "int2").rows
    assert [row.scheme for row in rows] == ["base", "int4", "int8-row", "int2"]
    base = rows[0]
    assert (base.delta, base.kl_mean, base.same_top, base.sqnr_db, base.bits_per_weight) == (0, 0, 1, math.inf, 32)


def test_a_row_says_what_perplexity_and_divergence_say_to_the_bit():
    result = bench("int3", embeddings="quantize", window=8)
    quantized, cost = quantize_model(MODEL, get_format("int3"), "quantize")
    alone, beside = perplexity(quantized, IDS, window=8), divergence(MODEL, quantized, IDS, window=8)
    row = result.rows[1]
    assert (row.perplexity, row.perplexity_stderr) == (alone.perplexity, alone.stderr)
    assert (row.kl_mean, row.same_top) == (beside.kl_mean, beside.same_top)
    assert row.delta == alone.perplexity - perplexity(MODEL, IDS, window=8).perplexity
    assert (row.bits_per_weight, row.bytes, row.sqnr_db) == (cost.bits_per_weight, cost.nbytes, cost.sqnr_db)
    assert result.divergences == (beside,)


def test_embeddings_are_kept_unless_they_are_to_be_quantized():
    fmt, sizes = get_format("int4"), {name: w.nbytes for name, w in MODEL.weights.items()}
    kept, cost = quantize_model(MODEL, fmt)
    assert kept.weights["embed"] is MODEL.weights["embed"]
    assert (cost.nbytes, cost.bits_per_weight) == (sizes["embed"] + sizes["head"] + 8 * 4 + 4, (8 * 4 + 4) * 8 / 64)
    everything, cost = quantize_model(MODEL, fmt, "quantize")
    assert [str(w.format) for w in everything.weights.values()] == ["int4"] * 3
    assert cost.nbytes == (8 + 11 + 11) * 4 + 3 * 4


def test_sqnr_is_over_all_weights_together_and_not_a_mean_of_matrices():
    _, cost = quantize_model(MODEL, get_format("int4"), "quantize")
    pairs = [(w.array, quantize(w.array, "int4").dequantize()) for w in MODEL.weights.values()]
    a, b = (np.concatenate([side.ravel() for side in column]).astype(np.float64) for column in zip(*pairs, strict=True))
    assert cost.sqnr_db == pytest.approx(10 * math.log10((a @ a) / ((a - b) @ (a - b))), rel=1e-12)


def test_a_file_for_the_base_gives_the_bits_that_memory_gives():
    in_memory, in_file = bench("int4", "int2"), bench("int4", "int2", base_memory=0)
    assert in_memory.divergences == in_file.divergences


def test_the_base_runs_once():
    once, thrice = memory_model(), memory_model()
    perplexity(once, IDS)
    benchmark(thrice, ["int4", "int3"], IDS)  # the models of both schemes write into the base's list
    assert thrice.fed == 3 * once.fed


def test_one_quantized_model_is_alive_at_a_time():
    import gc
    import weakref

    alive, most = weakref.WeakSet(), []

    class Watched(type(MODEL)):
        def with_weights(self, weights):
            alive.add(made := super().with_weights(weights))
            gc.collect()
            most.append(len(alive))
            return made

    benchmark(Watched(MODEL.weights, MODEL.config), ["int4", "int3", "int2"], IDS)
    assert most == [1, 1, 1]


@pytest.mark.parametrize(
    ("schemes", "options", "near"),
    [
        (["int8", "int4-g32-asymm"], {}, "asym"),
        (["nff4"], {}, "nf4"),
        (["int8"], {"embeddings": "keeep"}, "keep"),
        (["int8"], {"method": "chunk"}, "chunked"),
        (["int8"], {"bos": "nevr"}, "never"),
    ],
)
def test_a_misspelling_is_told_the_near_name_before_any_work_is_done(schemes, options, near):
    model = memory_model()
    with pytest.raises(UnknownNameError, match=f"'{near}'"):
        benchmark(model, schemes, IDS, **options)
    assert model.fed == []


def test_an_error_names_the_matrix():
    broken = memory_model()
    broken.weights["mix"].array[3, 2] = np.nan
    broken.weights["embed"].array[:] = 0
    with pytest.raises(NonFiniteError, match=r"mix: nan at index \(3, 2\)"):
        quantize_model(broken, get_format("int4"))


def test_an_error_names_the_scheme():
    huge = memory_model()
    huge.weights["mix"].array[0, 0] = 1e30
    huge.weights["embed"].array[:] = 0
    with pytest.raises(ScaleOverflowError, match="scheme int4-g4-f16: mix: "):
        benchmark(huge, ["int4", "int4-g4-f16"], IDS)


def test_progress_rises_through_all_runs_to_the_end():
    told = []
    bench("int4", "int2", on_progress=lambda *news: told.append(news))
    assert [name for name, done, _ in told if done % 199 == 0] == ["base", "int4", "int4", "int2", "int2"]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("int2", 3 * 199, 3 * 199)


def test_the_document_is_strict_json_with_the_keys_promised():
    document = json.loads(json.dumps(table.document(bench("int4", model_name="m", text_name="t")), allow_nan=False))
    assert (document["model"], document["text"], document["embeddings"]) == ("m", "t", "keep")
    assert [set(row) for row in document["rows"]] == [KEYS, KEYS]
    assert document["rows"][0]["sqnr_db"] is None
    assert document["rows"][1]["same_top"] <= 1
    measured = {"method", "window", "stride", "bos", "documents", "tokens", "scored_tokens", "ids_sha256"}
    assert set(document) == {"model", "text", "embeddings", "rows"} | measured


def test_what_is_not_finite_is_null_in_json():
    hopeless = benchmark(memory_model(scale=100.0), ["int2"], IDS)
    assert math.isinf(hopeless.rows[1].perplexity)
    rows = table.document(hopeless)["rows"]
    assert [row["perplexity"] for row in rows] == [None, None]
    assert rows[1]["delta"] is None
    json.dumps(rows, allow_nan=False)


def test_markdown_has_a_row_a_scheme_and_a_caption_that_states_how():
    text = table.markdown(bench("int4-g32", "int8", model_name="a|b_c", text_name="t"))
    lines = text.split("\n")
    assert [line.split("|")[1].strip() for line in lines[:5]] == ["scheme", "---", "base", "int4-g32", "int8"]
    assert {line.count("|") for line in lines[:5]} == {len(table.COLUMNS) + 1}
    caption = lines[6]
    assert r"a\|b\_c on t" in caption
    for part in ("199 of 200 tokens scored", "sliding window 16, stride 8", "no BOS added", "kept as stored", "sha256"):
        assert part in caption


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (3.13072, 0.0771, "3.1307 ± 0.077"),
        (34.6031, 1.487, "34.603 ± 1.49"),
        (125.219, 6.38, "125.22 ± 6.38"),
        (12345.6, 700.0, "12346 ± 700.00"),
        (1.5e9, 1e8, "1.5e+09 ± 100000000.00"),
        (2.0, math.nan, "2.0000"),
        (math.inf, math.nan, "inf"),
    ],
)
def test_figures_show_the_digits_that_mean_something(value, stderr, text):
    assert table.with_error(value, stderr) == text
