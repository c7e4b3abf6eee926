"""Names taken apart as llama.cpp's converter does, against gguf-py."""

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.conversion.model_name import parse_name, size_label, titled

pytestmark = pytest.mark.peers

WORDS = st.sampled_from(
    [
        *(
            "Llama",
            "llama",
            "Phi",
            "gpt2",
            "x",
            "v",
            "3",
            "3.1",
            "v0.2",
            "V2",
            "iter4",
            "8B",
            "8b",
            "7b1",
            "7_1b",
            "135M",
            "0.5B",
        ),
        *(
            "128k",
            "4K",
            "8x7B",
            "A3B",
            "small",
            "Mini",
            "large",
            "xl",
            "XXL",
            "chat",
            "Instruct",
            "vision",
            "lora",
            "hf",
        ),
        *("Q4_K_M", "q8_0", "bf16", "FP16", "f32", "iq2_xs", "it", "DPO", "", "...", "1e3", "7B-", "ä"),
    ]
)
NAMES = st.lists(WORDS, min_size=1, max_size=7).map("-".join).filter(lambda name: name.strip("-"))


@given(
    NAMES,
    st.sampled_from(["", "org/", "./", "two/parts/", "an org/"]),
    st.sampled_from([0, 1000, 135_000_000, 8_000_000_000]),
)
def test_a_name_s_parts_are_those_of_gguf_py(name, before, parameters):
    theirs = gguf.Metadata.get_model_id_components(before + name, parameters)
    found = parse_name(before + name, parameters)
    ours = (found.title, found.organization, found.basename, found.finetune, found.version, found.size_label)
    assert ours == theirs


@given(st.text(max_size=30) | NAMES)
def test_titles_are_those_of_gguf_py(name):
    assert titled(name) == gguf.Metadata.id_to_title(name)


@given(st.integers(0, 10**13))
def test_size_labels_are_those_of_gguf_py(count):
    assert size_label(count) == gguf.size_label(count, count, 0, 0)
