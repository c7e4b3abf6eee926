import pytest

from refquant.checkpoints.gguf_values import boolean, f32, string, u32
from refquant.conversion import Options, Override, TensorTypeRule
from refquant.conversion.patterns import read_tensor_types
from refquant.errors import RefquantError, UnknownNameError


def test_a_pattern_is_searched_in_lower_case():
    rule = TensorTypeRule.parse("ATTN_[KV]=Q8_0")
    assert (rule.pattern, rule.type) == ("attn_[kv]", "Q8_0")
    assert rule.matches("blk.0.attn_k.weight")
    assert not rule.matches("blk.0.ATTN_K.weight")


def test_what_precedes_the_first_equals_sign_is_the_pattern():
    with pytest.raises(UnknownNameError, match="'B=Q8_0'"):
        TensorTypeRule.parse("a=b=q8_0")


def test_classes_of_posix_are_ecmascript_s_too():
    assert TensorTypeRule.parse(r"^blk.[[:digit:]]+\.a=f16").matches("blk.17.a")
    assert not TensorTypeRule.parse(r"^[^[:alpha:]]=f16").matches("blk")


@pytest.mark.parametrize(
    "text",
    ["", "attn", "=q8_0", "attn=", "(=q8_0", "(?i)a=q8_0", "(?p<n>a)=q8_0", r"a\z=q8_0", "a++=q8_0", "[[:no:]]=f16"],
)
def test_what_is_no_pattern_in_ecmascript_is_refused(text):
    with pytest.raises(RefquantError):
        TensorTypeRule.parse(text)


@pytest.mark.parametrize("kind", ["q8_1", "Q8_K", "I32", "f64", "q4_k_m"])
def test_types_that_nothing_can_be_written_as_are_refused(kind):
    with pytest.raises(UnknownNameError):
        TensorTypeRule.parse(f"a={kind}")
    with pytest.raises(RefquantError):
        Options(output_tensor_type=kind)


def test_a_file_of_tensor_types_holds_words(tmp_path):
    (tmp_path / "t").write_text("a=f16 b=q8_0\n\tc=q4_0\n")
    assert [rule.type for rule in read_tensor_types(tmp_path / "t")] == ["F16", "Q8_0", "Q4_0"]
    (tmp_path / "t").write_bytes(b"a=f16\xff")
    with pytest.raises(RefquantError, match="UTF-8 at byte 5"):
        read_tensor_types(tmp_path / "t")
    (tmp_path / "t").write_bytes(b" " * (1 << 20) + b"a=f16")
    with pytest.raises(RefquantError, match="longer than"):
        read_tensor_types(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=int:7", u32(7)),
        ("a.b=int:4294967295", u32(2**32 - 1)),
        ("a=float:0.1", f32(0.10000000149011612)),
        ("a=bool:false", boolean(False)),
        ("a=str:x=y:z", string("x=y:z")),
        ("a=str:", string("")),
    ],
)
def test_an_override_has_a_type(text, value):
    key, found = Override.parse(text)
    assert (key, found.type, found.value) == (text.split("=")[0], value.type, value.value)


@pytest.mark.parametrize(
    "text",
    [
        *("a", "a=int", "=int:1", "a=int:", "a=int:-1", "a=int:4294967296", "a=int:1.5", "a=int:" + "9" * 5000),
        *(
            "a=float:x",
            "a=float:nan",
            "a=float:1e39",
            "a=bool:1",
            "a=string:x",
            "k" * 128 + "=int:1",
            "a=str:" + "é" * 64,
        ),
    ],
)
def test_an_override_without_a_type_or_of_a_value_that_does_not_fit_is_refused(text):
    with pytest.raises(RefquantError):
        Override.parse(text)


def test_layers_are_numbered_from_zero():
    with pytest.raises(RefquantError, match="from 0"):
        Options(prune_layers=(3, -1))
