import copy

import pytest

from refquant.errors import ModelError
from refquant.models.config import parse_config, read_config
from refquant.models.rope import DefaultRope, DynamicRope, LinearRope, LongRope, YarnRope
from tests.models.random_models import CONFIGS, GPT2, LLAMA

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
GEMMA3 = CONFIGS["Gemma3ForCausalLM"]
PHI3 = {k: v for k, v in CONFIGS["Phi3ForCausalLM"].items() if k != "partial_rotary_factor"}


def windows(raw):
    return [layer.window for layer in parse_config(raw).layers]


def test_sizes_that_a_config_leaves_out_follow_from_the_others():
    raw = {k: v for k, v in LLAMA.items() if k not in ("head_dim", "num_key_value_heads")}
    config = parse_config(raw)
    assert (config.head_dim, config.num_kv_heads) == (6, 4)
    assert parse_config(GPT2).intermediate_size == 96


def test_model_type_names_the_architecture_where_architectures_does_not():
    raw = {k: v for k, v in LLAMA.items() if k != "architectures"} | {"model_type": "qwen2"}
    assert parse_config(raw).architecture == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("LlamaForCausalLM", {"sliding_window": 9}, [None] * 3),
        ("MistralForCausalLM", {}, [9] * 3),
        ("MistralForCausalLM", {"sliding_window": None}, [None] * 3),
        ("Qwen2ForCausalLM", {}, [None, 9, 9]),
        ("Qwen2ForCausalLM", {"use_sliding_window": False}, [None] * 3),
        (
            "Qwen2ForCausalLM",
            {"layer_types": ["sliding_attention", "full_attention", "full_attention"]},
            [9, None, None],
        ),
        ("Gemma2ForCausalLM", {}, [9, None, 9]),
        ("Gemma3ForCausalLM", {}, [9, None, 9]),
        ("Gemma3ForCausalLM", {"sliding_window_pattern": 3}, [9, 9, None]),
    ],
)
def test_layers_slide_as_the_architecture_or_the_list_says(name, changes, expected):
    assert windows(CONFIGS[name] | changes) == expected


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2}},
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 16},
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 4.0},
                    "sliding_attention": {"rope_type": "default"},
                }
            },
        ),
    ],
)
def test_older_and_newer_spellings_of_rope_mean_the_same(older, newer):
    assert parse_config(LLAMA | older) == parse_config(LLAMA | newer)


def test_gemma3_scales_its_global_layers_alone_in_both_spellings():
    older = {"rope_theta": 2e6, "rope_local_base_freq": 300.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    newer = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        }
    }
    config = parse_config(GEMMA3 | older)
    assert config == parse_config(GEMMA3 | newer)
    local, everywhere, _ = (layer.rope for layer in config.layers)
    assert isinstance(local, DefaultRope)
    assert local.rope_theta == 300.0
    assert isinstance(everywhere, LinearRope)
    assert everywhere.rope_theta == 2e6
    plain = parse_config(GEMMA3)
    assert [layer.rope.rope_theta for layer in plain.layers] == [1e4, 1e6, 1e4]


def test_early_phi3_calls_longrope_su_and_keeps_the_pretrained_length_outside():
    raw = PHI3 | {"rope_scaling": {"type": "su", **FACTORS}, "original_max_position_embeddings": 16}
    rope = parse_config(raw).layers[0].rope
    assert isinstance(rope, LongRope)
    assert (rope.original_max_position_embeddings, rope.long_factor[1]) == (16, 2.1)


def test_yarn_without_factor_or_pretrained_length_takes_both_from_the_configured_length():
    rope = parse_config(LLAMA | {"rope_scaling": {"type": "yarn", "factor": None}}).layers[0].rope
    assert isinstance(rope, YarnRope)
    assert (rope.scale, rope.amplitude) == (1.0, 1.0)


def test_dynamic_scaling_measures_against_the_configured_length():
    rope = parse_config(LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}).layers[0].rope
    assert isinstance(rope, DynamicRope)
    assert (rope.frequencies(64) == rope.frequencies(3)).all()
    assert (rope.frequencies(65)[1:] < rope.frequencies(64)[1:]).all()


def test_attention_scales_with_the_head_the_scalar_or_the_depth():
    assert parse_config(LLAMA).layers[0].attention_scale == 8**-0.5
    assert parse_config(CONFIGS["Gemma2ForCausalLM"]).layers[0].attention_scale == 10**-0.5
    by_depth = parse_config(GPT2 | {"scale_attn_by_inverse_layer_idx": True})
    assert [layer.attention_scale for layer in by_depth.layers] == [6**-0.5, 6**-0.5 / 2, 6**-0.5 / 3]
    assert parse_config(GPT2 | {"scale_attn_weights": False}).layers[0].attention_scale == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalLn"]}, "did you mean 'LlamaForCausalLM'.*supported: .*Gemma2ForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"]}, "unknown architecture 'MixtralForCausalLM'.*Phi3ForCausalLM"),
        ({"architectures": []}, r"architectures is \[None\]"),
        ({"architectures": None, "model_type": "lama"}, "did you mean 'llama'"),
        ({"hidden_act": "gelu_tanh"}, "unknown activation 'gelu_tanh'.*supported: gelu_new"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 24.0}, "hidden_size is 24.0; it must be a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"intermediate_size": None}, "intermediate_size is missing"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"num_attention_heads": 5, "head_dim": None}, "hidden_size 24 is not a multiple of the 5 heads"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of the 3 key/value heads"),
        ({"head_dim": 7}, "rotates 7 coordinates; they go in pairs"),
        ({"partial_rotary_factor": 0.5}, "LlamaForCausalLM rotates whole heads"),
        ({"num_local_experts": 8}, "num_local_experts is set: mixtures of experts"),
        ({"quantization_config": {"bits": 4}}, "the checkpoint is quantized"),
        ({"attn_logit_softcapping": 50.0}, "LlamaForCausalLM does not cap attention"),
        ({"rope_scaling": {"type": "lineer", "factor": 2.0}}, "unknown rope type 'lineer'; did you mean 'linear'"),
        ({"rope_scaling": {"factor": 2.0, "type": 3}}, "unknown rope type '3'"),
        ({"rope_scaling": {"type": "linear"}}, "rope type 'linear' needs factor"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "factor is -1; it must be a positive"),
        ({"rope_scaling": {"type": "linear", "factr": 2.0}}, "'factr'; did you mean 'factor'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "needs low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0]}}, "long_factor lists 1 numbers"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate is 1"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object or null"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "both given and differ",
        ),
        (
            {
                "rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8},
                "original_max_position_embeddings": 16,
            },
            "original_max_position_embeddings is 16 in one place and 8",
        ),
        ({"layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
        ({"layer_types": ["full_attention"]}, "each of the 3 layers"),
        ({"layer_types": ["full_attention", "chunked", "full_attention"]}, "unknown layer type 'chunked'"),
    ],
)
def test_values_that_are_not_understood_are_named(changes, message):
    raw = copy.deepcopy(LLAMA) | changes
    with pytest.raises(ModelError, match=message):
        parse_config(raw)


def test_layer_types_must_agree_with_an_architecture_that_has_one_kind():
    raw = CONFIGS["MistralForCausalLM"] | {"layer_types": ["full_attention"] * 3}
    with pytest.raises(ModelError, match="contradicts MistralForCausalLM"):
        parse_config(raw)


def test_gemma3_takes_rope_parameters_by_layer_type_alone():
    with pytest.raises(ModelError, match="must be given by layer type"):
        parse_config(GEMMA3 | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}})


@pytest.mark.parametrize("text", ["", "{", "[1]", '"llama"', "\xff", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_a_clear_error(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config\.json: "):
        read_config(path)
