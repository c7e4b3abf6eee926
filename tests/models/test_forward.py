import numpy as np
import pytest

import refquant as rq
from refquant.errors import ModelError, RefquantError
from refquant.models.weights import Dense
from tests.models.random_models import CONFIGS, LLAMA, random_ids, random_model

TOKENS = 90  # past the window, a block of queries, and the configured length

every_architecture = pytest.mark.parametrize("name", CONFIGS)


def close(a, b, limit=2e-5):
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.float32
    assert np.abs(a - b).max() <= limit * np.abs(b).max()


@every_architecture
def test_hidden_states_and_logits_have_their_shapes_and_are_finite(name):
    model = random_model(CONFIGS[name])
    hidden = model.hidden(random_ids(2, TOKENS))
    logits = model.logits(hidden)
    assert hidden.shape == (2, TOKENS, 24)
    assert logits.shape == (2, TOKENS, 50)
    assert hidden.dtype == logits.dtype == np.float32
    assert np.isfinite(logits).all()


@every_architecture
@pytest.mark.parametrize("steps", [[90], [50, 40], [1, 63, 1, 1, 24], [1] * 90])
def test_incremental_decoding_equals_the_full_pass(name, steps):
    model, ids = random_model(CONFIGS[name]), random_ids(2, TOKENS)
    cache, done, parts = model.new_cache(2, TOKENS), 0, []
    for step in steps:
        parts.append(model.hidden(ids[:, done : done + step], cache))
        done += step
        assert cache.used == done
    close(np.concatenate(parts, axis=1), model.hidden(ids))


@every_architecture
def test_a_batch_equals_its_sequences_alone(name):
    model, ids = random_model(CONFIGS[name]), random_ids(5, TOKENS)
    together = model.hidden(ids)
    for row in range(5):
        close(together[row : row + 1], model.hidden(ids[row : row + 1]))


@every_architecture
def test_later_tokens_leave_earlier_outputs_alone(name):
    model, ids = random_model(CONFIGS[name]), random_ids(1, TOKENS)
    changed = ids.copy()
    changed[:, 70:] = (changed[:, 70:] + 1) % 50
    before, after = model.hidden(ids), model.hidden(changed)
    np.testing.assert_array_equal(before[:, :70], after[:, :70])
    assert (before[:, 70:] != after[:, 70:]).any(axis=-1).all()


@every_architecture
@pytest.mark.parametrize("keep", [slice(-1, None), slice(40, None), slice(10, 70), slice(0, 1), slice(None)])
def test_kept_tokens_equal_those_of_the_whole(name, keep):
    model, ids = random_model(CONFIGS[name]), random_ids(2, TOKENS)
    close(model.hidden(ids, keep=keep), model.hidden(ids)[:, keep])


def test_kept_tokens_do_not_change_what_the_cache_gets():
    model, ids = random_model(LLAMA), random_ids(1, 40)
    whole, last = model.new_cache(1, 40), model.new_cache(1, 40)
    model.hidden(ids[:, :30], whole)
    assert model.hidden(ids[:, :20], last, keep=slice(-1, None)).shape == (1, 1, 24)
    assert model.hidden(ids[:, 20:30], last, keep=slice(0, 0)).shape == (1, 0, 24)
    close(model.hidden(ids[:, 30:], last), model.hidden(ids[:, 30:], whole))


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Phi3ForCausalLM"])
def test_one_sliding_layer_sees_exactly_its_window(name):
    sizes = {"num_hidden_layers": 1, "sliding_window": 9}
    model, ids = random_model(CONFIGS[name] | sizes), random_ids(1, 40)
    changed = ids.copy()
    changed[0, 12] = (changed[0, 12] + 1) % 50
    touched = (model.hidden(ids) != model.hidden(changed)).any(axis=-1)[0]
    assert np.flatnonzero(touched).tolist() == list(range(12, 12 + 9))


def test_a_window_as_long_as_the_text_is_no_window():
    ids = random_ids(1, 40)
    sliding = random_model(CONFIGS["MistralForCausalLM"] | {"sliding_window": 40})
    full = random_model(CONFIGS["MistralForCausalLM"] | {"sliding_window": None})
    np.testing.assert_array_equal(sliding.hidden(ids), full.hidden(ids))


def test_soft_caps_bound_the_logits():
    model = random_model(CONFIGS["Gemma2ForCausalLM"] | {"final_logit_softcapping": 0.5})
    logits = model.logits(model.hidden(random_ids(1, 20)))
    assert 0.4 < np.abs(logits).max() <= 0.5


def test_replaced_weights_are_used_and_the_rest_is_shared():
    model, ids = random_model(LLAMA), random_ids(1, 20)
    name = model.linear_names[5]
    quantized = rq.quantize(model.weights[name].dequantize(), "int4-g8", name=name)
    other = model.with_weights({name: quantized})
    assert other.weights[name] is quantized
    assert all(other.weights[n] is w for n, w in model.weights.items() if n != name)
    expected = model.with_weights({name: Dense(quantized.dequantize())}).hidden(ids)
    close(other.hidden(ids), expected, 1e-6)
    assert (model.hidden(ids) != expected).any()
    assert other.nbytes == model.nbytes - model.weights[name].nbytes + quantized.nbytes


def test_every_matrix_can_be_quantized_the_tied_embedding_too():
    for raw in (CONFIGS["Gemma2ForCausalLM"], CONFIGS["GPT2LMHeadModel"], LLAMA):
        model = random_model(raw)
        names = (*model.linear_names, *model.embedding_names)
        parts = {n: rq.quantize(model.weights[n].dequantize(), "int8", name=n) for n in names}
        dense = {n: Dense(q.dequantize()) for n, q in parts.items()}
        ids = random_ids(2, 20)
        a, b = model.with_weights(parts), model.with_weights(dense)
        close(a.logits(a.hidden(ids)), b.logits(b.hidden(ids)), 1e-6)


def test_linear_and_embedding_names_are_the_matrices_that_quantization_replaces():
    llama = random_model(LLAMA)
    assert len(llama.linear_names) == 3 * 7
    assert llama.linear_names[0] == "model.layers.0.self_attn.q_proj.weight"
    assert llama.embedding_names == ("model.embed_tokens.weight", "lm_head.weight")
    assert random_model(LLAMA | {"tie_word_embeddings": True}).embedding_names == ("model.embed_tokens.weight",)
    gpt2 = random_model(CONFIGS["GPT2LMHeadModel"])
    assert gpt2.linear_names[:4] == tuple(
        f"transformer.h.0.{n}.weight" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    )
    assert gpt2.weights["transformer.h.0.attn.c_attn.weight"].shape == (72, 24)


def test_in_memory_gives_the_same_model():
    model, ids = random_model(LLAMA), random_ids(1, 20)
    quantized = model.with_weights({n: rq.quantize(model.weights[n].dequantize(), "int8") for n in model.linear_names})
    dense = quantized.in_memory()
    assert all(isinstance(w, Dense) for w in dense.weights.values())
    close(dense.hidden(ids), quantized.hidden(ids), 1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (1, 0)])
def test_no_tokens_give_an_empty_array(shape):
    model = random_model(LLAMA)
    assert model.hidden(np.zeros(shape, np.int64)).shape == (*shape, 24)
    assert model.logits(model.hidden(np.zeros(shape, np.int64))).shape == (*shape, 50)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[1, 50]], r"50 at index \(0, 1\); the vocabulary has ids 0 … 49"),
        ([[1, -1]], r"-1 at index \(0, 1\)"),
        ([1, 2], r"shape \(2,\) given"),
        ([[1.0]], "float64 of shape"),
        (np.array([[2**63]], np.uint64), "at index"),
    ],
)
def test_ids_that_are_no_tokens_are_named(ids, message):
    with pytest.raises(RefquantError, match=message):
        random_model(LLAMA).hidden(ids)


def test_misuse_of_cache_and_keep_is_named():
    model = random_model(LLAMA)
    with pytest.raises(RefquantError, match="made for a batch of 2, used with 1"):
        model.hidden(random_ids(1, 3), model.new_cache(2, 5))
    cache = model.new_cache(1, 5)
    model.hidden(random_ids(1, 3), cache)
    with pytest.raises(RefquantError, match="3 tokens given after 3; it was made for 5"):
        model.hidden(random_ids(1, 3), cache)
    assert cache.used == 3
    with pytest.raises(RefquantError, match="batch 0 and length 5"):
        model.new_cache(0, 5)
    with pytest.raises(RefquantError, match="has a step"):
        model.hidden(random_ids(1, 3), keep=slice(None, None, 2))


def test_learned_positions_end():
    model = random_model(CONFIGS["GPT2LMHeadModel"])
    assert model.hidden(random_ids(1, 200)).shape == (1, 200, 24)
    with pytest.raises(RefquantError, match=r"201 positions needed; transformer\.wpe\.weight has 200"):
        model.hidden(random_ids(1, 201))


def test_replacing_an_unknown_weight_or_another_shape_is_named():
    model = random_model(LLAMA)
    with pytest.raises(ModelError, match=r"unknown weight.*did you mean 'model\.layers\.0\.self_attn\.q_proj\.weight'"):
        model.with_weights({"model.layers.0.self_attn.q_prj.weight": Dense(np.zeros((32, 24), np.float32))})
    with pytest.raises(ModelError, match=r"lm_head\.weight: shape \(24, 50\) given; the configuration says \(50, 24\)"):
        model.with_weights({"lm_head.weight": Dense(np.zeros((24, 50), np.float32))})
