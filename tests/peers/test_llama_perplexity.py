"""llama-perplexity and llama-imatrix beside ours, on SmolLM2's GGUF as it is shipped and as float32.

llama.cpp keeps keys and values in float16 unless it is told otherwise, which moves an importance matrix by 1e-3.
"""

import re
import subprocess

import numpy as np
import pytest

import refquant as rq
from refquant.calibration import importance_matrix
from refquant.checkpoints.imatrix import read_imatrix
from refquant.evaluation import llama_kl, perplexity, read_llama_base, write_llama_base
from refquant.evaluation.scoring import make_plan
from refquant.models.rounded_inputs import with_activations

from .llama_cpp import tool
from .smollm2 import gguf_path, wikitext

# One process for all of them, so that what the fixtures measure is measured once.
pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.xdist_group("llama-perplexity")]

WINDOW = 512
CHUNKS = 4  # 8 for the file as it is shipped


def run(program, *arguments):
    command = [tool(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def estimate(output):
    """The final perplexity of llama-perplexity and its error."""
    found = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", output)
    assert found, output[-2000:]
    return float(found[1]), float(found[2])


def figure(output, name):
    """A figure of llama-perplexity's KL statistics and its error."""
    found = re.search(rf"{re.escape(name)}\s*:\s*(-?[\d.]+)%?(?: ±\s*([\d.]+))?", output)
    assert found, output[-3000:]
    return float(found[1]), float(found[2] or "nan")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The text, SmolLM2 in float32, and its Q8_0 copy."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "text").write_text(wikitext()[:60_000])
    run("llama-quantize", "--allow-requantize", gguf_path(), folder / "f32.gguf", "F32")
    run("llama-quantize", "--allow-requantize", folder / "f32.gguf", folder / "q8.gguf", "Q8_0")
    return folder


@pytest.fixture(scope="module")
def theirs(files):
    """llama-perplexity's figure of the float32 file, of which it also left a base file."""
    base = ["--kl-divergence-base", files / "theirs.kld"]
    output = run_perplexity(files / "f32.gguf", "-f", files / "text", *base)
    return estimate(output)


def run_perplexity(model, *more, chunks=CHUNKS, last="Final estimate"):
    """llama-perplexity on one thread: several wait for one another, which takes long on a busy machine."""
    for _ in range(3):  # a thread writes the log, and on a busy machine the program may end before its last lines
        output = run("llama-perplexity", "-m", model, "-c", WINDOW, "--chunks", chunks, "-t", 1, *more)
        if last in output:
            break
    return output


def test_float32_gives_llama_perplexitys_figure_error_and_ids(files, theirs, record_property):
    model = rq.load_model(files / "f32.gguf")
    found = perplexity(model, (files / "text").read_text(), method="llama.cpp", limit=CHUNKS * WINDOW)
    assert found.scored_tokens == CHUNKS * (WINDOW // 2 - 1)
    assert found.perplexity == pytest.approx(theirs[0], rel=2e-4)
    assert found.stderr == pytest.approx(theirs[1], rel=2e-3)
    figures = f"{theirs[0]} ± {theirs[1]} by llama-perplexity, {found.perplexity:.4f} ± {found.stderr:.4f} by refquant"
    record_property("SmolLM2 beside llama.cpp", f"float32, perplexity: {figures}")
    base = read_llama_base(files / "theirs.kld")
    assert base.ids.tolist() == model.tokenizer.encode((files / "text").read_text())[: CHUNKS * WINDOW].tolist()
    beside = llama_kl(model, base)
    assert beside.base_perplexity == pytest.approx(theirs[0], rel=1e-5)
    assert abs(beside.kl_mean) < 1e-5
    assert beside.same_top > 0.998


def test_the_shipped_q4_1_file_gives_their_figure_within_half_a_percent_and_closer_with_their_activations(
    files, record_property
):
    expected, _ = estimate(run_perplexity(gguf_path(), "-f", files / "text", chunks=8))
    model, text = rq.load_model(gguf_path()), (files / "text").read_text()
    how = {"method": "llama.cpp", "limit": 8 * WINDOW}
    found = perplexity(model, text, **how)
    rounded = perplexity(with_activations(model, "llama.cpp"), text, **how)
    figures = (
        f"{expected} by llama-perplexity; {found.perplexity:.4f}, and {rounded.perplexity:.4f} with its activations"
    )
    record_property("SmolLM2 beside llama.cpp", f"Q4_1 as shipped, perplexity: {figures}")
    assert found.perplexity == pytest.approx(expected, rel=5e-3)
    assert rounded.perplexity == pytest.approx(expected, rel=5e-3)


@pytest.fixture(scope="module")
def base(files):
    """A base file that refquant wrote."""
    model = rq.load_model(files / "f32.gguf")
    plan = make_plan(model, (files / "text").read_text(), method="llama.cpp", limit=CHUNKS * WINDOW)
    write_llama_base(model, plan, files / "ours.kld")
    return files / "ours.kld"


def run_kl(model, files, base, *more):
    return run_perplexity(files / model, "--kl-divergence-base", base, "--kl-divergence", *more, last="Same top p:")


def test_q8_0_diverges_as_llama_perplexity_says_once_activations_are_rounded_as_theirs(files, base, record_property):
    output = run_kl("q8.gguf", files, base)
    found = llama_kl(with_activations(rq.load_model(files / "q8.gguf"), "llama.cpp"), read_llama_base(base))
    expected, error = figure(output, "Mean    KLD")
    figures = f"{expected} ± {error} by llama-perplexity, {found.kl_mean:.6f} with its activations"
    record_property("SmolLM2 beside llama.cpp", f"Q8_0, mean KLD: {figures}")
    assert found.kl_mean == pytest.approx(expected, abs=error)
    for name, value, stderr in (
        ("Mean PPL(Q)", found.perplexity, found.ln_ratio_stderr * found.perplexity),
        ("Mean ln(PPL(Q)/PPL(base))", found.ln_ratio, found.ln_ratio_stderr),
        ("RMS Δp    ", 100 * found.rms_dp, 100 * found.rms_dp_stderr),
        ("Same top p", 100 * found.same_top, 100 * found.same_top_stderr),
    ):
        assert value == pytest.approx(figure(output, name)[0], abs=2 * stderr), name


def test_weights_alone_diverge_as_llama_perplexity_says_of_a_float32_copy_of_them(files, base):
    run("llama-quantize", "--allow-requantize", files / "q8.gguf", files / "q8-as-f32.gguf", "F32")
    float32 = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # float16 caches move a median this small by 1 %
    output = run_kl("q8-as-f32.gguf", files, base, *float32)
    found = llama_kl(rq.load_model(files / "q8.gguf"), read_llama_base(base))
    for name, value in (
        ("Mean PPL(Q)", found.perplexity),
        ("Mean PPL(base)", found.base_perplexity),
        ("Mean    KLD", found.kl_mean),
        ("Median  KLD", dict(found.kl_percentiles)[0.5]),
        ("90.0%   KLD", dict(found.kl_percentiles)[0.9]),
        ("RMS Δp    ", 100 * found.rms_dp),
        ("Same top p", 100 * found.same_top),
    ):
        assert value == pytest.approx(figure(output, name)[0], rel=1e-2, abs=2e-6), name


def test_an_importance_matrix_agrees_to_float32_rounding(files):
    tokens = 2 * WINDOW
    float32 = ["-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-ppl", "-b", WINDOW]
    run("llama-imatrix", "-m", files / "f32.gguf", "-f", files / "text", "-c", WINDOW, "--chunks", 2, "-t", 1, *float32,
        "-o", files / "theirs.gguf")  # fmt: skip
    expected = read_imatrix(files / "theirs.gguf")
    found = importance_matrix(rq.load_model(files / "f32.gguf"), (files / "text").read_text(), limit=tokens)
    assert set(found.entries) == set(expected.entries)
    assert (found.chunk_count, found.chunk_size) == (expected.chunk_count, expected.chunk_size)
    for name, entry in expected.entries.items():
        assert np.array_equal(found.entries[name].counts, entry.counts)
        assert np.abs(found.entries[name].sums - entry.sums).max() < 1e-5 * entry.sums.max(), name
