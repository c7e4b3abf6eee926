import numpy as np
import pytest

from refquant.checkpoints.gguf_values import ValueType, numbers, string, u32
from refquant.conversion import FILE_TYPES, Options, Override, TensorTypeRule, file_type, plan
from refquant.conversion.model_facts import ModelFacts
from refquant.conversion.roles import role_of, why_kept
from refquant.errors import RefquantError, UnknownNameError
from tests.conversion import frozen
from tests.conversion.models import Listed, facts, shapes

SMALL = Listed(facts(), shapes())


def types(model, name, options=None, **keywords):
    return {tensor.name: tensor.new for tensor in plan(model, name, options, **keywords).tensors}


def of_role(model, name, part, **keywords):
    """The types of the tensors whose name contains `part`, in order."""
    return [kind for tensor, kind in types(model, name, **keywords).items() if part in tensor]


def model(metadata=None, **shape):
    layers, experts = shape.get("layers", 2), shape.get("experts", 0)
    return Listed(facts(layers=layers, experts=experts, **(metadata or {})), shapes(**shape))


def test_names_aliases_and_numbers_mean_the_same_file_type():
    assert file_type("q4_k") is file_type("Q4_K_M") is file_type("15")
    assert file_type("q3_k").name == "Q3_K_M"
    assert file_type("0").name == "F32"  # and not COPY, which has no number
    assert len({kind.name for kind in FILE_TYPES}) == len(FILE_TYPES) == 36
    assert len({kind.number for kind in FILE_TYPES}) == len(FILE_TYPES)
    with pytest.raises(UnknownNameError, match="'Q4_K_S'"):
        file_type("Q4_KS")


@pytest.mark.parametrize("name", frozen.MODELS)
def test_every_file_type_gives_every_tensor_the_type_that_llama_quantize_gave(name):
    expected = [line for line in frozen.PATH.read_text().splitlines() if line.startswith(f"{name} ")]
    assert len(expected) > 30
    for line in expected:
        kind = file_type(line.split()[1])
        assert frozen.line(name, kind.name, kind.base, types(frozen.listed(name), kind.name)) == line


def test_blocks_ascend_as_numbers_and_names_as_bytes():
    names = [
        "blk.10.a.weight",
        "blk.0.c.weight",
        "blk.2.b.weight",
        "output.weight",
        "Z",
        "blk.2.a.weight",
        "blk.x",
        "a",
    ]
    listed = Listed(facts(), dict.fromkeys(names, (4,)))
    order = [
        "Z",
        "a",
        "blk.x",
        "output.weight",
        "blk.0.c.weight",
        "blk.2.a.weight",
        "blk.2.b.weight",
        "blk.10.a.weight",
    ]
    assert list(types(listed, "Q8_0")) == order
    assert list(types(listed, "Q8_0", keep_order=True)) == names


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("output.weight", "output"),
        ("blk.0.output.weight", "other"),
        ("token_embd.weight", "token_embd"),
        ("per_layer_token_embd.weight", "token_embd"),
        ("v.token_embd.weight", "other"),
        ("blk.3.attn_qkv.weight", "attn_v"),
        ("blk.3.attn_kv_b.weight", "attn_v"),
        ("blk.3.attn_v.bias", "other"),
        ("blk.3.ffn_down_shexp.weight", "ffn_down"),
        ("blk.3.attn_output.weight", "attn_output"),
    ],
)
def test_the_name_says_the_role(name, role):
    assert role_of(name) == role


@pytest.mark.parametrize(
    ("name", "shape", "kept"),
    [
        ("blk.0.attn_q.weight", (4, 8), False),
        ("blk.0.attn_q.weight", (2, 4, 8), False),
        ("blk.0.attn_q.weight", (8,), True),
        ("blk.0.attn_q.weight", (1, 1, 8), True),
        ("blk.0.attn_q.bias", (4, 8), True),
        ("blk.0.attn_q_norm.weight", (4, 8), True),
        ("blk.0.ffn_gate_inp.weight", (4, 8), True),
        ("position_embd.weight", (4, 8), True),
        ("xposition_embd.weight", (4, 8), False),
        ("v.position_embd.weight", (4, 8), True),
        ("abcde", (4, 8), False),
        ("abcd", (4, 8), True),
        ("blk.0.hc_a.weight", (4, 8), False),
    ],
)
def test_vectors_norms_routers_and_tables_keep_their_type(name, shape, kept):
    assert (why_kept(name, shape, "llama") is not None) == kept
    assert why_kept("blk.0.hc_a.weight", (4, 8), "glm5-next") is not None


def test_a_tied_embedding_gets_the_type_of_the_output():
    assert types(SMALL, "Q4_K_S")["token_embd.weight"] == "Q4_K"
    assert types(SMALL, "Q4_K_S")["output.weight"] == "Q6_K"
    assert types(model(tied=True), "Q4_K_S")["token_embd.weight"] == "Q6_K"
    assert types(model(tied=True), "Q8_0")["token_embd.weight"] == "Q8_0"
    assert types(model(tied=True, embd=96), "Q4_K_S")["token_embd.weight"] == "Q8_0"


def test_outer_layers_and_every_third_between_get_more_bits():
    # 16 layers: an eighth is 2; 2 + 2, 2 + 5, … lie between.
    rich = [i for i in range(16) if i < 2 or i >= 14 or i % 3 == 1]
    for part in ("attn_v", "ffn_down"):
        found = of_role(model(layers=16), "Q4_K_M", part)
        assert [i for i, kind in enumerate(found) if kind == "Q6_K"] == rich


def test_layers_of_a_model_with_experts_are_counted_by_name():
    names = {f"blk.{i}.ffn_down_exps.weight": (4, 2, 256) for i in (7, 0)}
    assert list(types(Listed(facts(layers=8, experts=4), names), "Q4_K_S").values()) == ["Q5_K", "Q4_K"]
    assert list(types(Listed(facts(layers=8, experts=0), names), "Q4_K_S").values()) == ["Q5_K", "Q4_K"]
    assert list(types(Listed(facts(layers=8, experts=4), dict(list(names.items())[:1])), "Q4_K_S").values()) == ["Q4_K"]
    with pytest.raises(RefquantError, match=r"blk\.0\. to blk\.3\."):
        types(Listed(facts(layers=4, experts=4), names), "Q4_K_S")
    with pytest.raises(RefquantError, match="names the block"):
        types(Listed(facts(layers=4, experts=4), {"ffn_up.weight": (2, 256)}), "Q4_K_S")


def test_grouped_heads_experts_and_70b_change_the_value_matrices():
    assert set(of_role(model(), "Q2_K", "attn_v")) == {"Q3_K"}
    assert set(of_role(model({"kv_heads": 1}), "Q2_K", "attn_v")) == {"Q4_K"}
    assert set(of_role(model({"kv_heads": 1}, layers=80), "Q2_K", "attn_v")) == {"Q5_K"}
    assert set(of_role(model(layers=80), "Q2_K", "attn_v")) == {"Q3_K"}  # 65B
    assert set(of_role(model(experts=8), "Q2_K", "attn_v")) == {"Q8_0"}
    assert set(of_role(model(experts=8), "Q5_K_M", "attn_k")) == {"Q8_0"}
    assert set(of_role(model(experts=8), "Q4_K_M", "attn_output")) == {"Q5_K"}
    assert set(of_role(model(experts=4), "IQ2_S", "attn_v")) == {"Q4_K"}


def test_mxfp4_is_for_experts_alone():
    assert set(of_role(model(experts=2), "MXFP4_MOE", "ffn_up")) == {"MXFP4"}
    assert set(types(model(), "MXFP4_MOE").values()) == {"Q8_0", "F32"}


def test_rows_that_blocks_do_not_divide_fall_back():
    decided = {tensor.name: tensor for tensor in plan(model(ff=96), "Q4_K_S").tensors}["blk.1.ffn_down.weight"]
    assert (decided.new, decided.instead_of, decided.why) == ("Q5_0", "Q4_K", "the base of Q4_K_S")
    instead = {"Q3_K_S": "Q4_0", "Q5_K_S": "Q5_1", "Q6_K": "Q8_0", "IQ3_S": "IQ4_NL", "TQ1_0": "Q4_0", "Q8_0": "Q8_0"}
    for name, kind in instead.items():
        assert types(model(ff=96), name)["blk.0.ffn_down.weight"] == kind
    assert types(model(ff=100), "Q4_0")["blk.0.ffn_down.weight"] == "F16"
    assert types(model(ff=100), "Q4_K_S")["blk.0.ffn_down.weight"] == "F16"
    assert len(plan(model(ff=96), "Q4_K_S").fallbacks) == 2
    with pytest.raises(RefquantError, match="rows of 96 weights, which blocks of 256"):
        plan(model(ff=96), "Q4_K_S", Options(allow_fallback=False))
    with pytest.raises(RefquantError, match="names no type to fall back to"):
        plan(model(ff=96), "Q1_0")


def test_options_come_before_the_mix():
    options = Options(
        tensor_types=(TensorTypeRule.parse("attn_v=q2_k"), TensorTypeRule.parse("attn=q3_k")),
        output_tensor_type="F16",
        token_embedding_type="Q5_0",
    )
    found = types(SMALL, "Q4_K_M", options)
    assert (found["blk.0.attn_v.weight"], found["blk.0.attn_q.weight"]) == ("Q2_K", "Q3_K")
    assert (found["output.weight"], found["token_embd.weight"]) == ("F16", "Q5_0")
    assert set(types(SMALL, "Q4_K_M", Options(pure=True)).values()) == {"Q4_K", "F32"}
    assert types(SMALL, "Q4_K_M", Options(leave_output_tensor=True))["output.weight"] == "F32"
    assert types(model(tied=True), "Q4_K_M", Options(output_tensor_type="F16"))["token_embd.weight"] == "F16"
    with pytest.raises(RefquantError, match="rows of 96"):
        plan(model(embd=96), "Q4_0", Options(token_embedding_type="Q4_K"))
    with pytest.raises(RefquantError, match="leaves no type to choose"):
        plan(SMALL, "F16", options)


def test_the_table_of_every_layer_s_embeddings_may_be_named_on_its_own():
    listed = Listed(facts(), {"per_layer_token_embd.weight": (4, 256), "token_embd.weight": (4, 256)} | shapes())
    given = Options(tensor_types=(TensorTypeRule.parse("token_embd=q8_0"),), token_embedding_type="Q5_0")
    found = types(listed, "Q4_0", given)
    assert (found["per_layer_token_embd.weight"], found["token_embd.weight"]) == ("Q8_0", "Q5_0")


def test_pruned_blocks_move_up_and_keep_the_name_that_an_imatrix_knows():
    decided = plan(model(layers=4), "Q8_0", Options(prune_layers=(0, 2)))
    assert decided.blocks == 2
    pairs = {(t.name, t.source) for t in decided.tensors if "attn_q." in t.name}
    assert pairs == {("blk.0.attn_q.weight", "blk.1.attn_q.weight"), ("blk.1.attn_q.weight", "blk.3.attn_q.weight")}
    names = {f"blk.{i}.a.weight": (2, 2) for i in (3, 1, 0)}  # in the order of a split model's parts
    kept = plan(Listed(facts(layers=4), names), "Q8_0", Options(prune_layers=(0,)), keep_order=True)
    assert [(t.name, t.source) for t in kept.tensors] == [
        ("blk.1.a.weight", "blk.3.a.weight"),
        ("blk.0.a.weight", "blk.1.a.weight"),
    ]
    with pytest.raises(RefquantError, match="no tensors left"):
        plan(Listed(facts(), {"blk.0.a.weight": (2, 2)}), "Q8_0", Options(prune_layers=(0,)))


def test_the_plan_says_which_tensors_need_an_importance_matrix():
    needing = {tensor.name for tensor in plan(SMALL, "IQ2_XXS").needing_imatrix}
    assert "blk.0.ffn_up.weight" in needing
    assert not {name for name in needing if "embd" in name or name == "output.weight"}
    assert {t.new for t in plan(SMALL, "Q2_K_S").needing_imatrix} == {"Q2_K"}
    assert plan(SMALL, "Q2_K").needing_imatrix == ()
    same = Listed(facts(), {"blk.0.ffn_up.weight": (2, 256)}, "IQ2_XXS")
    assert plan(same, "IQ2_XXS").needing_imatrix == ()  # nothing is to be done


def test_sizes_add_up():
    decided = plan(SMALL, "Q4_0")
    assert decided.size == sum(int(np.prod(shape)) for shape in shapes().values())
    by_hand = sum(tensor.size * {"Q4_0": 4.5, "Q6_K": 6.5625, "F32": 32}[tensor.new] for tensor in decided.tensors)
    assert decided.nbytes * 8 == by_hand
    assert decided.bits_per_weight == by_hand / decided.size
    assert decided.old_nbytes == 4 * decided.size


def test_overrides_change_the_facts_that_the_rules_look_at():
    overrides = (Override("llama.expert_count", u32(8)),)
    assert types(SMALL, "Q4_K_M", Options(overrides=overrides))["blk.0.attn_v.weight"] == "Q8_0"


def test_arrays_of_heads_stand_for_the_first_block():
    heads = {"general.architecture": "a", "a.block_count": 3, "a.attention.head_count": np.int32([8, 4, 4])}
    assert ModelFacts.from_metadata(heads | {"a.attention.head_count_kv": [2, 4, 4]}).query_groups == 4
    assert ModelFacts.from_metadata(heads).query_groups == 1
    assert ModelFacts.from_metadata(heads | {"a.attention.head_count_kv": 0}).query_groups == 0
    assert ModelFacts.from_metadata({"general.architecture": "clip"}).layers == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "general.architecture is None"),
        ({"general.architecture": string("llama")}, "'llama.block_count' is missing"),
        (facts() | {"llama.block_count": string("2")}, "'llama.block_count' is '2'"),
        (facts() | {"llama.expert_count": numbers(ValueType.I32, [-1])}, "an integer ≥ 0"),
        (facts() | {"llama.block_count": numbers(ValueType.U32, [])}, "an integer ≥ 0"),
    ],
)
def test_metadata_that_the_rules_cannot_use_is_refused(metadata, message):
    with pytest.raises(RefquantError, match=message):
        plan(Listed(metadata, shapes()), "Q4_K_M")
