import json

import numpy as np
import pytest

from refquant.checkpoints.checkpoint import CheckpointTensor
from refquant.checkpoints.safetensors import SafetensorsTensor
from refquant.conversion import hugging_face
from refquant.conversion.hugging_face import as_gguf
from refquant.errors import CheckpointError, ModelError, UnknownNameError
from refquant.floats import BF16
from refquant.models import embedded
from refquant.models.gguf_loading import order_of_halves
from tests.models.random_models import CONFIGS, GPT2, LLAMA, random_model, tensors, write_folder

SMALL = LLAMA | {"num_hidden_layers": 1, "num_key_value_heads": 4}


@pytest.fixture
def arrays():
    return tensors(random_model(SMALL))


def values(converted):
    return {key: value.value for key, value in converted.typed_metadata.items()}


def test_tensors_come_by_name_under_gguf_s_names_and_vectors_stay_float32(tmp_path, arrays):
    found = as_gguf(write_folder(tmp_path, SMALL, arrays), "f16").tensors
    assert [(name, t.dtype, t.shape) for name, t in found.items()] == [
        ("output.weight", "F16", (50, 24)),
        ("token_embd.weight", "F16", (50, 24)),
        ("blk.0.attn_norm.weight", "F32", (24,)),
        ("blk.0.ffn_down.weight", "F16", (24, 40)),
        ("blk.0.ffn_gate.weight", "F16", (40, 24)),
        ("blk.0.ffn_up.weight", "F16", (40, 24)),
        ("blk.0.ffn_norm.weight", "F32", (24,)),
        ("blk.0.attn_k.weight", "F16", (32, 24)),
        ("blk.0.attn_output.weight", "F16", (24, 32)),
        ("blk.0.attn_q.weight", "F16", (32, 24)),
        ("blk.0.attn_v.weight", "F16", (32, 24)),
        ("output_norm.weight", "F32", (24,)),
    ]
    assert all(
        t.name == name and t.nbytes == t.numpy().nbytes and t.size == t.numpy().size for name, t in found.items()
    )


def test_keys_come_in_the_converter_s_order_with_its_types(tmp_path, arrays):
    folder = write_folder(tmp_path / "Tiny-Llama-1K-Chat", SMALL, arrays)
    found = as_gguf(folder, "f32").typed_metadata
    assert [(key, value.type_name, value.value) for key, value in found.items()] == [
        ("general.architecture", "str", "llama"),
        ("general.type", "str", "model"),
        ("general.name", "str", "Tiny Llama 1K Chat"),
        ("general.finetune", "str", "1k-Chat"),
        ("general.basename", "str", "Tiny-Llama"),
        ("general.size_label", "str", "8.4K"),
        ("llama.block_count", "u32", 1),
        ("llama.context_length", "u32", 64),
        ("llama.embedding_length", "u32", 24),
        ("llama.feed_forward_length", "u32", 40),
        ("llama.attention.head_count", "u32", 4),
        ("llama.attention.head_count_kv", "u32", 4),
        ("llama.rope.freq_base", "f32", 10_000.0),
        ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-6),
        ("llama.attention.key_length", "u32", 8),
        ("llama.attention.value_length", "u32", 8),
        ("general.file_type", "u32", 0),
        ("llama.vocab_size", "u32", 50),
        ("llama.rope.dimension_count", "u32", 8),
        ("general.quantization_version", "u32", 2),
    ]


def test_q_and_k_are_put_in_neighbouring_pairs_and_back_again_and_v_is_left_alone(tmp_path, arrays):
    found = as_gguf(write_folder(tmp_path, SMALL, arrays), "f32").tensors
    for part in "qk":
        given, stored = (
            arrays[f"model.layers.0.self_attn.{part}_proj.weight"],
            found[f"blk.0.attn_{part}.weight"].numpy(),
        )
        np.testing.assert_array_equal(stored[:8], given[[0, 4, 1, 5, 2, 6, 3, 7]])
        np.testing.assert_array_equal(stored[order_of_halves(32, 8)], given)
    np.testing.assert_array_equal(
        found["blk.0.attn_v.weight"].numpy(), arrays["model.layers.0.self_attn.v_proj.weight"]
    )


def test_gemma_s_norms_get_their_offset_in_the_type_they_are_stored_in(tmp_path):
    raw = CONFIGS["Gemma3ForCausalLM"]
    halves = {name: array.astype(np.float16) for name, array in tensors(random_model(raw)).items()}
    found = as_gguf(write_folder(tmp_path, raw, halves), "f32").tensors
    for ours, theirs in {
        "blk.1.post_ffw_norm": "model.layers.1.post_feedforward_layernorm",
        "blk.0.attn_q_norm": "model.layers.0.self_attn.q_norm",
        "output_norm": "model.norm",
    }.items():
        expected = (halves[f"{theirs}.weight"] + np.float16(1)).astype(np.float32)
        np.testing.assert_array_equal(found[f"{ours}.weight"].numpy(), expected)


def test_gpt_2_s_matrices_are_turned_and_its_positions_stay_float32(tmp_path):
    arrays = tensors(random_model(GPT2))
    found = as_gguf(write_folder(tmp_path, GPT2, arrays), "bf16").tensors
    up = found["blk.2.ffn_up.weight"]
    assert up.shape == (96, 24)
    np.testing.assert_array_equal(up.numpy(), BF16.encode(arrays["transformer.h.2.mlp.c_fc.weight"].T))
    np.testing.assert_array_equal(up.dequantize(), BF16.decode(up.numpy()))
    np.testing.assert_array_equal(found["position_embd.weight"].numpy(), arrays["transformer.wpe.weight"])
    assert found["position_embd.weight"].dtype == found["blk.0.attn_qkv.bias"].dtype == "F32"


def test_auto_is_the_type_of_the_first_matrix_in_half_precision(tmp_path, arrays):
    assert values(as_gguf(write_folder(tmp_path / "a", SMALL, arrays)))["general.file_type"] == 1
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(np.float16)
    arrays["lm_head.weight"] = arrays["lm_head.weight"].astype(np.float16)
    found = as_gguf(write_folder(tmp_path / "b", SMALL, arrays))
    assert found.tensors["blk.0.ffn_up.weight"].dtype == "F16"


def test_nothing_is_read_before_it_is_asked_for(tmp_path, arrays, monkeypatch):
    folder = write_folder(tmp_path, SMALL, arrays)

    def read(tensor: CheckpointTensor):
        raise AssertionError(f"{tensor.name} was read")

    monkeypatch.setattr(SafetensorsTensor, "numpy", read)
    converted = as_gguf(folder)
    with pytest.raises(AssertionError, match="lm_head"):
        converted.tensors["output.weight"].numpy()


def test_gemma_2_s_head_is_left_out_and_gemma_3_s_embedding_cut_to_its_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face, "_tokenizer", lambda folder, name, pre: {})
    two = CONFIGS["Gemma2ForCausalLM"] | {"query_pre_attn_scalar": 8}
    arrays = tensors(random_model(two))
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    assert "output.weight" not in as_gguf(write_folder(tmp_path / "two", two, arrays)).tensors
    three = CONFIGS["Gemma3ForCausalLM"]
    folder = write_folder(tmp_path / "three", three, tensors(random_model(three)))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{}]}))
    embedding = as_gguf(folder).tensors["token_embd.weight"]
    assert embedding.shape == embedding.numpy().shape == (3, 24)
    (folder / "tokenizer.json").write_text('{"model": []}')
    with pytest.raises(ModelError, match=r"tokenizer\.json: model\.vocab and added_tokens must list"):
        as_gguf(folder)


LOST = [
    (LLAMA | {"hidden_act": "relu"}, "activation is relu; a GGUF of this architecture means silu"),
    (CONFIGS["MistralForCausalLM"], "attention slides a window of 9; the GGUF's of None, in 3 of 3 layers"),
    (CONFIGS["Qwen2ForCausalLM"], "attention slides a window of 9; the GGUF's of None, in 2 of 3 layers"),
    (CONFIGS["Gemma2ForCausalLM"], "attention scores times 0.316228; the GGUF's times 0.353553, in 3 of 3 layers"),
    (
        LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "rotary frequencies of DynamicRope; the GGUF's as DefaultRope, in 3 of 3 layers",
    ),
    (
        GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        "attention scores times 0.204124; the GGUF's times 0.408248, in 1 of 3 layers",
    ),
]


@pytest.mark.parametrize(("raw", "words"), LOST)
def test_what_no_key_says_is_listed(raw, words, tmp_path):
    assert words in as_gguf(write_folder(tmp_path, raw, tensors(random_model(raw)))).lost


def test_a_window_as_long_as_the_context_is_no_loss(tmp_path):
    raw = CONFIGS["MistralForCausalLM"] | {"sliding_window": 64}
    assert as_gguf(write_folder(tmp_path, raw, tensors(random_model(raw)))).lost == ()


def test_sampling_and_the_model_s_own_name_are_kept(tmp_path, arrays):
    folder = write_folder(tmp_path, SMALL | {"_name_or_path": "some-lab/Tiny-8K-v2"}, arrays)
    sampling = {"temperature": 1, "top_k": 40, "top_p": None, "repetition_penalty": 1.1, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    found = as_gguf(folder).typed_metadata
    assert [(k, v.type_name, v.value) for k, v in found.items() if k.startswith("general.")][2:9] == [
        ("general.sampling.top_k", "i32", 40),
        ("general.sampling.temp", "f32", 1.0),
        ("general.sampling.penalty_repeat", "f32", 1.1),
        ("general.name", "str", "Tiny 8K v2"),
        ("general.version", "str", "v2"),
        ("general.organization", "str", "Some Lab"),
        ("general.basename", "str", "Tiny"),
    ]
    (folder / "generation_config.json").write_text('{"top_k": "forty"}')
    with pytest.raises(ModelError, match=r"generation_config\.json: top_k is 'forty'; it must be of type int"):
        as_gguf(folder)


def test_folders_that_cannot_be_converted_are_named(tmp_path, arrays):
    with pytest.raises(CheckpointError, match=r"no config\.json there"):
        as_gguf(tmp_path)
    with pytest.raises(UnknownNameError, match="unknown outtype 'f61'; did you mean 'f16'"):
        as_gguf(write_folder(tmp_path / "type", SMALL, arrays), "f61")
    capless = CONFIGS["Gemma2ForCausalLM"] | {"final_logit_softcapping": None}
    with pytest.raises(
        ModelError, match=r"Gemma2ForCausalLM without a soft cap \(final_soft_cap\) has no form in GGUF"
    ):
        as_gguf(write_folder(tmp_path / "cap", capless, tensors(random_model(capless))))
    del arrays["model.norm.weight"]
    with pytest.raises(ModelError, match=r"missing: the checkpoint lacks model\.norm\.weight"):
        as_gguf(write_folder(tmp_path / "missing", SMALL, arrays))
    (tmp_path / "missing" / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"config\.json: a JSON list given"):
        as_gguf(tmp_path / "missing")


def test_a_tokenizer_whose_scores_no_file_has_is_listed_as_lost():
    """The embedded model's tokenizer.json has merges and no scores, which is all that GGUF's SentencePiece goes by."""
    converted = as_gguf(embedded.path())
    assert converted.model_lost == ()
    assert converted.lost == ("tokenizer: 538 ids of a probe text, which are not the 382 of tokenizer.json",)
