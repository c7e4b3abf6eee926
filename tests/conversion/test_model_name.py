import pytest

from refquant.conversion.model_name import ModelName, parse_name, size_label, titled


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("SmolLM2-135M-Instruct", 134_515_008, (None, "SmolLM2", "Instruct", None, "135M")),
        ("meta/Llama-3.1-8B-Instruct", 8_030_261_248, ("meta", "Llama-3.1", "Instruct", None, "8B")),
        ("Foo-7b1-v0.2", 7_100_000_000, (None, "Foo", None, "v0.2", "7.1B")),
        ("gpt2-large", 0, (None, "gpt2", None, None, "large")),
        ("Phi-3-mini-128k-instruct", 3_800_000_000, (None, "Phi-3", "128k-instruct", None, "mini")),
        ("gemma", 10, (None, None, None, None, None)),
        ("a model of ours", 10, (None, None, None, None, None)),
    ],
)
def test_a_name_is_taken_apart(name, parameters, expected):
    assert parse_name(name, parameters) == ModelName(name.rpartition("/")[2], *expected)


def test_words_get_capitals_and_versions_stay():
    assert titled("tiny-llama-v1.1-chat-HF") == "Tiny Llama v1.1 Chat HF"


@pytest.mark.parametrize(
    ("count", "label"),
    [(0, "0.00K"), (400, "0.40K"), (105_000, "105K"), (1_240_000, "1.2M"), (13_000_000_000, "13B")],
)
def test_sizes_have_two_digits_or_more(count, label):
    assert size_label(count) == label
