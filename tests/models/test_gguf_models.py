import itertools
import sys
import tracemalloc

import numpy as np
import pytest

import refquant as rq
from refquant.checkpoints.gguf_values import ValueType, boolean, f32, i64, numbers, string, strings, u32
from refquant.checkpoints.gguf_writer import TensorSource, write_gguf
from refquant.conversion.hugging_face import as_gguf
from refquant.errors import ModelError, RefquantError
from refquant.formats.base import QuantizedTensor
from refquant.models.gguf_loading import load_gguf, order_of_halves
from tests.models.gguf_models import LOSSLESS, folder_of, stored, write
from tests.models.random_models import LLAMA, random_ids

TOKENS = 150  # past windows, blocks of queries and the lengths that scalings start at
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 0.2,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.5, 4.0]}
SCALED = {
    "linear": LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama3": LLAMA | {"rope_scaling": LLAMA3},
    "yarn": LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    "yarn with all": LLAMA
    | {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
            "attention_factor": 1.3,
            "beta_fast": 4.0,
            "beta_slow": 0.5,
        }
    },
    "gemma3 linear": LOSSLESS["gemma3"] | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "longrope": LOSSLESS["phi3"] | {"rope_scaling": LONG, "original_max_position_embeddings": 32},
}

every_architecture = pytest.mark.parametrize("name", LOSSLESS)


def logits(model, tokens=TOKENS):
    return model.logits(model.hidden(random_ids(2, tokens)))


@pytest.fixture
def llama(tmp_path):
    return stored(folder_of(LLAMA, tmp_path / "folder"))


@every_architecture
def test_logits_are_those_of_the_folder_to_the_bit(name, tmp_path):
    folder = folder_of(LOSSLESS[name], tmp_path / "folder")
    loaded = rq.load_model(write(tmp_path / "model.gguf", *stored(folder)))
    np.testing.assert_array_equal(logits(loaded).view(np.uint32), logits(rq.load_model(folder)).view(np.uint32))
    assert as_gguf(folder).lost == ()


@pytest.mark.parametrize("name", SCALED)
def test_rotary_scalings_give_the_folder_s_logits(name, tmp_path):
    folder = folder_of(SCALED[name], tmp_path / "folder")
    loaded, expected = rq.load_model(write(tmp_path / "model.gguf", *stored(folder))), logits(rq.load_model(folder))
    assert np.abs(logits(loaded) - expected).max() <= 2e-5 * np.abs(expected).max()
    assert as_gguf(folder).lost == ()


@pytest.mark.parametrize("tokens", [20, 60])
def test_long_divisors_are_taken_past_the_original_length_and_short_ones_before(tokens, tmp_path):
    folder = folder_of(SCALED["longrope"], tmp_path / "folder")
    metadata, arrays = stored(folder)
    before = logits(rq.load_model(write(tmp_path / "a.gguf", metadata, arrays)), tokens)
    arrays["rope_factors_long.weight"] = arrays["rope_factors_long.weight"] * 2
    after = logits(rq.load_model(write(tmp_path / "b.gguf", metadata, arrays)), tokens)
    assert (before != after).any() == (tokens > 32)


def test_the_comparison_notices_rows_left_in_pairs_or_turned_twice(tmp_path, llama):
    expected = logits(rq.load_model(tmp_path / "folder"))
    metadata, arrays = llama
    once, name = order_of_halves(32, 8), "blk.1.attn_q.weight"
    for order in (once, once[once]):
        loaded = rq.load_model(write(tmp_path / "m.gguf", metadata, arrays | {name: arrays[name][order].copy()}))
        assert np.abs(logits(loaded) - expected).max() > 1e-3 * np.abs(expected).max()


def test_pairs_are_put_in_halves_head_by_head():
    assert order_of_halves(12, 6).tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_queries_keys_and_values_may_be_fused_where_they_are_apart_and_the_reverse(tmp_path, llama):
    metadata, arrays = llama
    expected = logits(rq.load_model(write(tmp_path / "apart.gguf", metadata, arrays)))
    for i in range(3):
        qkv = [arrays.pop(f"blk.{i}.attn_{x}.weight") for x in "qkv"]
        arrays[f"blk.{i}.attn_qkv.weight"] = np.concatenate(qkv)
    fused = rq.load_model(write(tmp_path / "fused.gguf", metadata, arrays))
    np.testing.assert_allclose(logits(fused), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    metadata, arrays = stored(folder_of(LOSSLESS["phi3"], tmp_path / "phi3"))
    expected = logits(rq.load_model(write(tmp_path / "phi3.gguf", metadata, arrays)))
    for i in range(3):
        rows = np.split(arrays.pop(f"blk.{i}.attn_qkv.weight"), [32, 48])
        arrays |= {f"blk.{i}.attn_{x}.weight": part for x, part in zip("qkv", rows, strict=True)}
    apart = rq.load_model(write(tmp_path / "phi3-apart.gguf", metadata, arrays))
    np.testing.assert_allclose(logits(apart), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_quantized_weights_stay_so_in_the_file_until_they_are_used(tmp_path):
    raw = LLAMA | {"hidden_size": 32, "intermediate_size": 64}
    metadata, arrays = stored(folder_of(raw, tmp_path / "folder"))
    sources, plain = [], {}
    for name, array in arrays.items():
        q = rq.quantize(array, "q8_0" if "ffn" in name else "q4_0") if array.ndim > 1 else None
        plain[name] = array if q is None else q.dequantize()
        kind, data = ("F32", array) if q is None else (q.format.name.upper(), q.parts["blocks"])
        sources.append(TensorSource(name, kind, array.shape, lambda data=data: data))
    write_gguf(tmp_path / "q.gguf", metadata, sources)
    loaded = rq.load_model(tmp_path / "q.gguf")
    assert loaded.nbytes == sum(source.nbytes for source in sources)
    up = loaded.weights["blk.0.ffn_up.weight"]
    assert isinstance(up, QuantizedTensor)
    assert up.format.name == "q8_0"
    assert not up.parts["blocks"].flags.owndata
    assert not up.parts["blocks"].flags.writeable
    expected = logits(rq.load_model(write(tmp_path / "plain.gguf", metadata, plain)))
    np.testing.assert_allclose(logits(loaded), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_the_rows_of_a_layer_have_their_names_in_the_file_and_a_head_of_its_own_or_the_embedding(tmp_path, llama):
    metadata, arrays = llama
    loaded = rq.load_model(write(tmp_path / "m.gguf", metadata, arrays))
    assert loaded.path == tmp_path / "m.gguf"
    assert loaded.tokenizer is None
    assert loaded.linear_names[:3] == ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight")
    assert loaded.embedding_names == ("token_embd.weight", "output.weight")
    del arrays["output.weight"]
    assert rq.load_model(write(tmp_path / "tied.gguf", metadata, arrays)).embedding_names == ("token_embd.weight",)


def test_absent_keys_mean_what_llama_cpp_assumes(tmp_path, llama):
    metadata, arrays = llama
    full = rq.load_model(write(tmp_path / "full.gguf", metadata, arrays)).config
    for key in ("rope.freq_base", "rope.dimension_count", "vocab_size", "attention.head_count_kv"):
        del metadata[f"llama.{key}"]
    arrays = {
        n: np.concatenate([a, a]) if n.endswith(("attn_k.weight", "attn_v.weight")) else a for n, a in arrays.items()
    }
    bare = rq.load_model(write(tmp_path / "bare.gguf", metadata, arrays)).config
    assert bare.num_kv_heads == bare.num_heads == 4
    assert bare.vocab_size == 50
    assert bare.layers == full.layers


def test_a_size_may_be_given_for_each_layer_if_it_is_the_same(tmp_path, llama):
    metadata, arrays = llama
    expected = rq.load_model(write(tmp_path / "one.gguf", metadata, arrays)).config
    metadata["llama.feed_forward_length"] = numbers(ValueType.U32, [40, 40, 40])
    metadata["llama.attention.head_count"] = numbers(ValueType.I32, [4, 4, 4])
    assert rq.load_model(write(tmp_path / "each.gguf", metadata, arrays)).config == expected
    metadata["llama.feed_forward_length"] = numbers(ValueType.U32, [40, 40, 48])
    with pytest.raises(ModelError, match=r"llama\.feed_forward_length is \[40, 40, 48\]; layers that differ"):
        rq.load_model(write(tmp_path / "differ.gguf", metadata, arrays))


@pytest.mark.parametrize(
    ("pattern", "slides"),
    [
        (None, [1, 0, 1]),
        (u32(3), [1, 1, 0]),
        (u32(0), [1, 1, 1]),
        (numbers(ValueType.BOOL, [False, True, False]), [0, 1, 0]),
    ],
)
def test_the_layers_that_slide_follow_the_pattern(pattern, slides, tmp_path):
    metadata, arrays = stored(folder_of(LOSSLESS["gemma2"], tmp_path / "folder"))
    if pattern is not None:
        metadata["gemma2.attention.sliding_window_pattern"] = pattern
    config = rq.load_model(write(tmp_path / "m.gguf", metadata, arrays)).config
    assert [layer.window for layer in config.layers] == [9 if slide else None for slide in slides]


def test_gemma_2_without_its_keys_has_the_windows_and_caps_of_the_paper(tmp_path):
    metadata, arrays = stored(folder_of(LOSSLESS["gemma2"], tmp_path / "folder"))
    for key in ("attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
        del metadata[f"gemma2.{key}"]
    config = rq.load_model(write(tmp_path / "m.gguf", metadata, arrays)).config
    assert [layer.window for layer in config.layers] == [4096, None, 4096]
    assert (config.attention_soft_cap, config.final_soft_cap) == (50.0, 30.0)


REFUSED = [
    ("general.architecture", None, "general.architecture is missing"),
    ("general.architecture", string("lama"), "unknown architecture 'lama'; did you mean 'llama'.*supported: gemma2"),
    ("general.architecture", u32(3), "unknown architecture '3'"),
    ("llama.embedding_length", None, "llama.embedding_length is missing"),
    ("llama.block_count", u32(0), "llama.block_count is 0; it must be a positive integer"),
    ("llama.block_count", u32(4_000_000_000), "llama.block_count is 4000000000; the file has 30 tensors in all"),
    ("llama.block_count", u32(4), r"lacks blk\.3\.attn_norm\.weight"),
    ("llama.block_count", u32(2), r"blk\.2\..*uses no such tensor"),
    ("llama.block_count", string("3"), "llama.block_count is '3'"),
    ("llama.context_length", None, "llama.context_length is missing"),
    ("llama.attention.layer_norm_rms_epsilon", None, "llama.attention.layer_norm_rms_epsilon is missing"),
    ("llama.attention.layer_norm_rms_epsilon", f32(np.nan), "is nan; it must be a positive, finite number"),
    ("llama.attention.head_count_kv", u32(3), "llama.attention.head_count 4 is not a multiple of 3 kv heads"),
    ("llama.attention.key_length", u32(16), "llama.attention.value_length is 8; keys are 16 wide"),
    ("llama.feed_forward_length", u32(48), r"blk\.0\.ffn_gate\.weight: shape \(40, 24\).*says \(48, 24\)"),
    ("llama.vocab_size", u32(51), r"token_embd\.weight: shape \(50, 24\) given; the configuration says \(51, 24\)"),
    ("llama.rope.dimension_count", u32(4), "llama.rope.dimension_count is 4; llama does not rotate heads of 8 so"),
    ("llama.rope.scaling.type", string("ntk"), "unknown rope scaling 'ntk'; known: linear, longrope, none, yarn"),
    ("llama.rope.scaling.attn_factor", f32(2), "rope scaling 'linear' has no amplitude"),
    ("llama.rope.scaling.yarn_ext_factor", f32(0.5), "rotary scaling with it is not supported"),
    ("llama.expert_count", u32(8), "llama.expert_count is 8: mixtures of experts are not supported"),
    ("llama.attention.causal", boolean(False), "llama.attention.causal is False: attention is causal"),
    ("llama.attention.sliding_window", u32(9), "attention.sliding_window is 9; which layers of llama slide"),
]


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_keys_that_cannot_be_obeyed_are_named(key, value, message, tmp_path, llama):
    metadata, arrays = llama
    metadata.pop(key, None)
    if value is not None:
        metadata[key] = value
    with pytest.raises(ModelError, match=message) as caught:
        rq.load_model(write(tmp_path / "m.gguf", metadata, arrays))
    assert str(caught.value).startswith(f"{tmp_path / 'm.gguf'}: ")


def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(tmp_path, llama):
    metadata, arrays = llama
    broken = {
        "lacks output_norm.weight": {n: a for n, a in arrays.items() if n != "output_norm.weight"},
        "lacks token_embd.weight": {n: a for n, a in arrays.items() if n != "token_embd.weight"},
        r"blk\.1\.attn_norm\.bias: .*uses no such tensor": arrays | {"blk.1.attn_norm.bias": np.zeros(24, np.float32)},
        r"lacks blk\.0\.attn_q\.bias|uses no such": arrays | {"blk.1.attn_q.bias": np.zeros(32, np.float32)},
        r"rope_freqs\.weight: shape \(3,\) given": arrays | {"rope_freqs.weight": np.ones(3, np.float32)},
        r"rope_freqs\.weight: 0\.0 … 0\.0 given": arrays | {"rope_freqs.weight": np.zeros(4, np.float32)},
        r"has rope_factors_long\.weight; rope scaling 'linear' of llama takes rope_freqs\.weight": arrays
        | {"rope_factors_long.weight": np.ones(4, np.float32)},
    }
    for message, some in broken.items():
        with pytest.raises(ModelError, match=message):
            rq.load_model(write(tmp_path / "m.gguf", metadata, some))


def test_a_bias_that_only_the_first_block_has_is_missed_in_the_others(tmp_path, llama):
    metadata, arrays = llama
    arrays["blk.0.attn_q.bias"] = np.zeros(32, np.float32)
    with pytest.raises(ModelError, match=r"lacks blk\.1\.attn_q\.bias"):
        rq.load_model(write(tmp_path / "m.gguf", metadata, arrays))


ODD = [
    *(u32(0), u32(7), u32(2**32 - 1), i64(-1), f32(0.0), f32(np.nan), f32(np.inf), f32(1e-45), f32(2.5)),
    *(boolean(True), boolean(False), string(""), string("yarn"), string("longrope"), strings([]), strings(["a", "b"])),
    *(numbers(ValueType.U32, []), numbers(ValueType.U32, [3, 3, 3]), numbers(ValueType.F32, [1.0, np.nan])),
    numbers(ValueType.BOOL, [True, False, True]),
]


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt2"])
def test_any_value_of_any_key_gives_a_model_or_a_clear_error(name, tmp_path):
    metadata, arrays = stored(folder_of(LOSSLESS[name], tmp_path / "folder"))
    opened = rq.open(write(tmp_path / "m.gguf", metadata, arrays))
    further = ("rope.scaling.type", "rope.scaling.factor", "attention.sliding_window_pattern", "expert_count")
    keys = [*metadata, *(f"{name}.{key}" for key in further), "tokenizer.ggml.tokens", "tokenizer.ggml.model"]
    messages, loaded = [], 0
    for key, odd in itertools.product(keys, ODD):
        opened.metadata = {**{k: v.value for k, v in metadata.items()}, key: odd.value}
        try:
            loaded += load_gguf(opened) is not None
        except RefquantError as error:
            messages.append(str(error))
    assert loaded > 50
    assert len(messages) > 50
    assert all(message.startswith(str(tmp_path)) for message in messages)


def test_a_run_widens_a_few_matrices_at_a_time(tmp_path):
    raw = LLAMA | {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 12, "vocab_size": 4096}
    metadata, arrays = stored(folder_of(raw, tmp_path / "folder"))
    sources = []
    for name, array in arrays.items():
        data = rq.quantize(array, "q8_0").parts["blocks"] if array.ndim > 1 else array
        sources.append(TensorSource(name, "F32" if data is array else "Q8_0", array.shape, lambda data=data: data))
    write_gguf(tmp_path / "m.gguf", metadata, sources)
    tracemalloc.start()
    model = rq.load_model(tmp_path / "m.gguf")
    model.hidden(random_ids(1, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(array.nbytes for array in arrays.values()) / 8


def test_a_product_over_runs_of_rows_is_the_product(monkeypatch):
    rng = np.random.default_rng(3)
    q = rq.quantize(rng.normal(size=(50, 64)).astype(np.float32), "q8_0")
    x = rng.normal(size=(2, 3, 64)).astype(np.float32)
    expected = x @ q.dequantize().T
    for weights in (1, 64 * 7, 64 * 25, 64 * 50):
        monkeypatch.setattr(sys.modules[type(q.format).__module__], "_WEIGHTS_OF_A_PRODUCT", weights)
        np.testing.assert_allclose(q.linear(x), expected, rtol=0, atol=1e-5)
