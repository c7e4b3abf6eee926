from dataclasses import replace

import numpy as np
import pytest

import refquant as rq
from refquant.errors import ModelError, NonFiniteError, RefquantError
from refquant.models import embedded
from refquant.models.generation import finish_reason, generate
from refquant.models.sampling import Sampling
from refquant.models.weights import Dense

MODEL = rq.load_model(embedded.path())
PROMPT = MODEL.tokenizer.encode_prompt("Once upon a time")


def test_greedy_tokens_are_the_likeliest_of_the_whole_text_run_without_a_cache():
    tokens = list(generate(MODEL, PROMPT, max_tokens=12))
    whole = np.concatenate([PROMPT, tokens])[None]
    logits = MODEL.logits(MODEL.hidden(whole))[0]
    assert tokens == logits[PROMPT.size - 1 : -1].argmax(axis=-1).tolist()


def test_tokens_come_one_at_a_time():
    tokens = generate(MODEL, PROMPT, max_tokens=3)
    assert len([next(tokens), next(tokens), next(tokens)]) == 3
    with pytest.raises(StopIteration):
        next(tokens)


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    def draw(seed):
        return list(generate(MODEL, PROMPT, max_tokens=20, sampling=Sampling(temperature=1.0), seed=seed))

    assert draw(1) == draw(1) != draw(2)


def test_a_text_ends_at_eos_which_is_its_last_token():
    greedy = list(generate(MODEL, PROMPT, max_tokens=20))
    end = greedy[7]
    assert list(generate(MODEL, PROMPT, max_tokens=20, eos_ids=frozenset({end}))) == greedy[: greedy.index(end) + 1]


def test_a_model_without_a_tokenizer_has_no_end_of_text():
    assert len(list(generate(replace(MODEL, tokenizer=None), [1], max_tokens=5))) == 5


def test_the_positions_of_the_model_end_a_text():
    short = replace(MODEL, config=replace(MODEL.config, max_positions=PROMPT.size + 3))
    assert len(list(generate(short, PROMPT, max_tokens=100, eos_ids=frozenset()))) == 3


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], r"shape \(0,\)"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([1.5], "float64"),
        ([-1, 3], r"-1 … 3 given; the model's vocabulary has ids 0 … 511"),
        ([512], "512 … 512"),
    ],
)
def test_a_bad_prompt_is_an_error_before_any_token_is_asked_for(ids, message):
    with pytest.raises(RefquantError, match=message):
        generate(MODEL, ids, max_tokens=1)


def test_a_prompt_that_fills_the_positions_is_an_error_that_names_both():
    with pytest.raises(ModelError, match=r"prompt of 512 tokens.*512 positions"):
        generate(MODEL, np.ones(512, np.int64), max_tokens=1)


@pytest.mark.parametrize(("options", "message"), [({"max_tokens": 0}, "max_tokens 0"), ({"seed": -1}, "seed -1")])
def test_a_number_outside_its_range_is_an_error(options, message):
    with pytest.raises(RefquantError, match=message):
        generate(MODEL, PROMPT, **{"max_tokens": 1, **options})


def test_weights_that_overflow_are_an_error_and_not_a_token():
    name = MODEL.names.embedding
    broken = np.full(MODEL.weights[name].shape, np.inf, np.float32)
    with pytest.raises(NonFiniteError, match="logits: nan for token 0"):
        next(generate(MODEL.with_weights({name: Dense(broken)}), PROMPT, max_tokens=1))


def test_the_reason_of_an_end_is_told():
    assert finish_reason([5, 2], 2, frozenset({2})) == "eos"
    assert finish_reason([5, 6], 2, frozenset({2})) == "max_tokens"
    assert finish_reason([5, 6], 3, frozenset({2})) == "max_positions"
