"""llama-perplexity's method and base files, on a model small enough to check by hand."""

import dataclasses
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refquant.errors import CheckpointError, ModelError, NonFiniteError, RefquantError
from refquant.evaluation import llama_kl, perplexity, read_llama_base, write_llama_base
from refquant.evaluation.llama_base_file import LlamaBaseWriter, row_dtype
from refquant.evaluation.scoring import make_plan

from .memory_model import Letters, memory_model, reference_logprobs

MODEL = memory_model(scale=0.5)
TEXT = "abcdefghijabdcfehgjiacbedgfihjabcdabcd"


def plan(text=TEXT, window=8, model=MODEL, **how):
    return make_plan(model, text, method="llama.cpp", window=window, **how)


def reference_nll(ids, window, bos):
    """One token at a time: whole windows, BOS over the first token, the second half scored but for its first."""
    nll = []
    for begin in range(0, len(ids) - window + 1, window):
        seen = [bos if bos is not None else ids[begin], *ids[begin + 1 : begin + window]]
        nll += [-reference_logprobs(MODEL, seen[:t])[seen[t]] for t in range(window // 2 + 1, window)]
    return nll


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=16, max_size=50), st.integers(3, 16))
def test_the_second_half_of_each_whole_window_is_scored_but_for_its_first_token(ids, window):
    nll = reference_nll(ids, window, None)
    found = perplexity(MODEL, ids, method="llama.cpp", window=window)
    assert found.scored_tokens == len(nll) == len(ids) // window * (window - 1 - window // 2)
    assert found.nll == pytest.approx(sum(nll), rel=1e-5)
    if len(nll) > 1:
        expected = math.exp(np.mean(nll)) * np.std(nll, ddof=1) / math.sqrt(len(nll))
        assert found.stderr == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_bos_begins_the_text_and_stands_in_place_of_the_first_token_of_every_window():
    ids = [0, *Letters().encode(TEXT).tolist()]
    found = perplexity(MODEL, TEXT, method="llama.cpp", window=8)
    assert found.bos == "always"
    assert found.nll == pytest.approx(sum(reference_nll(ids, 8, 0)), rel=1e-5)


class Special(Letters):
    """A tokenizer to which the letter j spells the special token 0."""

    def encode(self, text):
        ids = super().encode(text)
        return np.where(ids == 10, 0, ids)


def test_a_special_token_spelt_in_the_text_is_text():
    model = dataclasses.replace(MODEL, tokenizer=Special())
    assert plan(model=model).corpus.documents[0].tolist() == [0, *Letters().encode(TEXT).tolist()]
    assert make_plan(model, TEXT).corpus.documents[0].tolist() == [0, *Special().encode(TEXT).tolist()]


def test_windows_hold_512_tokens_where_the_model_has_so_many_positions():
    assert plan(window=None).window == MODEL.config.max_positions == 16


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(RefquantError, match="the longest document has 4 tokens"):
        plan("abc")


def test_a_window_with_nothing_to_score_is_refused():
    with pytest.raises(RefquantError, match="holds at least 3"):
        plan(window=2)


def test_a_base_file_gives_back_the_ids_and_log_probabilities_to_half_a_step(tmp_path):
    made = plan()
    measured = write_llama_base(MODEL, made, tmp_path / "base")
    assert measured.nll == perplexity(MODEL, TEXT, method="llama.cpp", window=8).nll
    base = read_llama_base(tmp_path / "base")
    assert base.ids.tolist() == [0, *Letters().encode(TEXT).tolist()][:32]
    rows = []
    for begin in range(0, 32, 8):
        seen = [0, *base.ids[begin + 1 : begin + 8].tolist()]
        rows += [reference_logprobs(MODEL, seen[:t]) for t in range(5, 8)]
    expected = np.array(rows)
    step = (expected.max(-1) - expected.min(-1)) / 65535
    assert (np.abs(base.logprobs(slice(None)) - expected) <= 0.51 * step[:, None] + 1e-6).all()


def test_a_model_beside_its_own_base_file_diverges_by_no_more_than_the_sixteen_bits(tmp_path):
    write_llama_base(MODEL, plan(), tmp_path / "base")
    found = llama_kl(MODEL, read_llama_base(tmp_path / "base"))
    assert found.scored_tokens == 12
    assert abs(found.kl_mean) < 1e-5
    assert abs(found.ln_ratio) < 1e-5
    assert found.same_top == 1
    assert found.rms_dp < 1e-5
    assert found.kl_percentiles[0][1] >= found.kl_percentiles[-1][1]


def test_the_figures_of_two_models_are_those_of_a_plain_loop(tmp_path):
    other = memory_model(scale=0.7)
    write_llama_base(MODEL, plan(), tmp_path / "base")
    base = read_llama_base(tmp_path / "base")
    found = llama_kl(other, base)
    p, q, targets = [], [], []
    for begin in range(0, 32, 8):
        seen = [0, *base.ids[begin + 1 : begin + 8].tolist()]
        for t in range(5, 8):
            p.append(reference_logprobs(MODEL, seen[:t]))
            q.append(reference_logprobs(other, seen[:t]))
            targets.append(seen[t])
    p, q, each = np.array(p), np.array(q), np.arange(12)
    kl, change = (np.exp(p) * (p - q)).sum(-1), np.exp(q[each, targets]) - np.exp(p[each, targets])
    nll, base_nll = -q[each, targets], -p[each, targets]
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-3)
    assert found.kl_mean_stderr == pytest.approx(kl.std(ddof=1) / math.sqrt(12), rel=1e-3)
    assert dict(found.kl_percentiles)[0.5] == pytest.approx(np.median(kl), rel=1e-3)
    assert found.dp_mean == pytest.approx(change.mean(), rel=1e-3, abs=1e-6)
    assert found.rms_dp == pytest.approx(math.sqrt((change**2).mean()), rel=1e-3)
    assert found.same_top == (p.argmax(-1) == q.argmax(-1)).mean()
    assert found.ln_ratio == pytest.approx((nll - base_nll).mean(), rel=1e-3, abs=1e-6)
    assert found.ln_ratio_stderr == pytest.approx((nll - base_nll).std(ddof=1) / math.sqrt(12), rel=1e-3)
    assert found.correlation == pytest.approx(np.corrcoef(nll, base_nll)[0, 1], rel=1e-3)


def test_an_odd_vocabulary_is_padded_to_an_even_number_of_codes():
    assert row_dtype(11).itemsize == 8 + 2 * 12


def test_rows_of_equal_logits_and_of_a_wide_range_are_stored(tmp_path):
    path = tmp_path / "base"
    with path.open("wb") as file:
        writer = LlamaBaseWriter(file, 4, 2, np.array([1, 0, 1, 0]))
        writer.write(np.array([[3.0, 3.0]], np.float32))
    assert read_llama_base(path).logprobs(slice(None)).tolist() == [[pytest.approx(-math.log(2))] * 2]
    with path.open("wb") as file:
        LlamaBaseWriter(file, 4, 2, np.array([1, 0, 1, 0])).write(np.array([[100.0, -100.0]], np.float32))
    assert read_llama_base(path).logprobs(slice(None)).tolist() == [[pytest.approx(0, abs=1e-6), -16.0]]


def test_a_run_that_fails_leaves_no_file(tmp_path):
    broken = memory_model(scale=math.nan)
    with pytest.raises(NonFiniteError), np.errstate(invalid="ignore"):
        write_llama_base(broken, plan(model=broken), tmp_path / "base")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_another_method_makes_no_base_file(tmp_path):
    with pytest.raises(RefquantError, match="method 'sliding' with 1 documents given"):
        write_llama_base(MODEL, make_plan(MODEL, TEXT), tmp_path / "base")


@pytest.fixture
def base_bytes(tmp_path):
    write_llama_base(MODEL, plan(), tmp_path / "good")
    return (tmp_path / "good").read_bytes()


def test_a_file_of_another_kind_is_refused(tmp_path):
    for content in (b"", b"_logits_", b"GGUF" + bytes(60)):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(CheckpointError, match="not a base file of llama-perplexity"):
            read_llama_base(tmp_path / "bad")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 2, "window = 2 in the header"),
        (12, 0, "vocab_size = 0 in the header"),
        (16, -1, "chunks = -1 in the header"),
        (16, 2**31 - 1, "truncated or damaged"),
        (12, 2**31 - 1, "truncated or damaged"),
    ],
)
def test_a_header_that_the_size_contradicts_is_refused(tmp_path, base_bytes, offset, value, message):
    damaged = bytearray(base_bytes)
    struct.pack_into("<i", damaged, offset, value)
    (tmp_path / "bad").write_bytes(damaged)
    with pytest.raises(CheckpointError, match=message):
        read_llama_base(tmp_path / "bad")


def test_a_file_truncated_anywhere_is_refused(tmp_path, base_bytes):
    for size in range(0, len(base_bytes), 7):
        (tmp_path / "bad").write_bytes(base_bytes[:size])
        with pytest.raises(CheckpointError):
            read_llama_base(tmp_path / "bad")


def test_ids_beyond_the_vocabulary_are_refused(tmp_path, base_bytes):
    damaged = bytearray(base_bytes)
    struct.pack_into("<i", damaged, 20, 11)
    (tmp_path / "bad").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="id 11 at index 0"):
        read_llama_base(tmp_path / "bad")


def test_a_base_of_another_vocabulary_is_refused(tmp_path):
    with (tmp_path / "base").open("wb") as file:
        LlamaBaseWriter(file, 4, 2, np.array([1, 0, 1, 0])).write(np.zeros((1, 2), np.float32))
    with pytest.raises(ModelError, match="vocabulary of 2 given; the model has 11"):
        llama_kl(MODEL, read_llama_base(tmp_path / "base"))
