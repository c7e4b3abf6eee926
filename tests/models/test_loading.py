import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import refquant as rq
from refquant.errors import CheckpointError, ModelError
from tests.models.random_models import CONFIGS, LLAMA, random_ids, random_model, tensors, write_folder

every_architecture = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture
def llama():
    return tensors(random_model(LLAMA))


@every_architecture
def test_a_folder_gives_the_model_that_was_written(name, tmp_path):
    model, ids = random_model(CONFIGS[name]), random_ids(2, 30)
    loaded = rq.load_model(write_folder(tmp_path, CONFIGS[name], tensors(model)))
    assert loaded.config == model.config
    assert loaded.tokenizer is None
    assert loaded.path == tmp_path
    assert list(loaded.weights) == list(model.weights)
    np.testing.assert_allclose(loaded.logits(loaded.hidden(ids)), model.logits(model.hidden(ids)), rtol=1e-4, atol=1e-5)


@every_architecture
def test_a_bare_model_s_names_have_no_prefix(name, tmp_path):
    model, ids = random_model(CONFIGS[name] | {"tie_word_embeddings": True}), random_ids(1, 20)
    prefix = model.names.prefix
    bare = {n.removeprefix(prefix): a for n, a in tensors(model).items()}
    loaded = rq.load_model(write_folder(tmp_path, CONFIGS[name], bare))
    np.testing.assert_allclose(loaded.hidden(ids), model.hidden(ids), rtol=1e-4, atol=1e-5)
    assert [prefix + n for n in loaded.linear_names] == list(model.linear_names)


def test_weights_stay_in_the_file_until_they_are_used(tmp_path, llama):
    loaded = rq.load_model(write_folder(tmp_path, LLAMA, llama))
    weight = loaded.weights[loaded.linear_names[0]].dequantize()
    assert not weight.flags.owndata
    assert not weight.flags.writeable


def test_half_precision_weights_are_widened(tmp_path, llama):
    halves = {n: a.astype(np.float16) for n, a in llama.items()}
    ids = random_ids(1, 20)
    loaded = rq.load_model(write_folder(tmp_path / "half", LLAMA, halves))
    full = rq.load_model(write_folder(tmp_path / "full", LLAMA, {n: a.astype(np.float32) for n, a in halves.items()}))
    np.testing.assert_array_equal(loaded.hidden(ids), full.hidden(ids))


def test_a_missing_head_is_the_embedding(tmp_path, llama):
    del llama["lm_head.weight"]
    loaded = rq.load_model(write_folder(tmp_path, LLAMA, llama))
    assert loaded.embedding_names == ("model.embed_tokens.weight",)
    hidden = loaded.hidden(random_ids(1, 5))
    np.testing.assert_array_equal(loaded.logits(hidden), hidden @ llama["model.embed_tokens.weight"].T)


def test_a_tied_head_that_is_stored_too_is_taken_once_and_must_be_equal(tmp_path, llama):
    tied = LLAMA | {"tie_word_embeddings": True}
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight: set it to false"):
        rq.load_model(write_folder(tmp_path / "differs", tied, llama))
    llama["lm_head.weight"] = llama["model.embed_tokens.weight"].copy()
    loaded = rq.load_model(write_folder(tmp_path / "equal", tied, llama))
    assert loaded.embedding_names == ("model.embed_tokens.weight",)
    assert "lm_head.weight" not in loaded.weights


def test_a_missing_tensor_is_named_with_near_ones(tmp_path, llama):
    llama["model.layers.1.mlp.up_project.weight"] = llama.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(ModelError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight; it has .*up_project"):
        rq.load_model(write_folder(tmp_path, LLAMA, llama))


def test_a_missing_embedding_is_named(tmp_path):
    folder = write_folder(tmp_path, LLAMA, {"bert.pooler": np.zeros((2, 2), np.float32)})
    with pytest.raises(ModelError, match=r"lacks model\.embed_tokens\.weight; none of its 1 tensors"):
        rq.load_model(folder)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.2.mlp.down_proj.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_a_tensor_of_another_shape_is_named(name, tmp_path, llama):
    llama[name] = np.concatenate([llama[name], llama[name]])
    with pytest.raises(ModelError, match=rf"{name}: shape \(.*\) given; the configuration says \("):
        rq.load_model(write_folder(tmp_path, LLAMA, llama))


def test_a_tensor_that_would_go_unused_is_refused(tmp_path, llama):
    llama["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    with pytest.raises(ModelError, match=r"q_proj\.bias: LlamaForCausalLM with this configuration uses no such tensor"):
        rq.load_model(write_folder(tmp_path, LLAMA, llama))


def test_buffers_of_old_checkpoints_are_passed_over(tmp_path, llama):
    llama["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    assert rq.load_model(write_folder(tmp_path, LLAMA, llama)).config.num_layers == 3


def test_weights_in_shards_are_found_by_their_index(tmp_path, llama):
    folder = write_folder(tmp_path, LLAMA, llama)
    (folder / "model.safetensors").unlink()
    names = sorted(llama)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, some in files.items():
        save_file({n: llama[n] for n in some}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, some in files.items() for n in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ids = random_ids(1, 10)
    np.testing.assert_allclose(rq.load_model(folder).hidden(ids), random_model(LLAMA).hidden(ids), rtol=1e-4, atol=1e-5)


def test_a_folder_without_a_config_is_a_clear_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json there"):
        rq.load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"no config\.json there"):
        rq.load_model(tmp_path / "nowhere")
