from functools import cache
from itertools import pairwise

import gguf
import numpy as np
import pytest
import regex
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import refquant as rq
from refquant.models.chat import render_chat
from refquant.models.tokenizer import load_tokenizer
from tests.peers import smollm2

pytestmark = pytest.mark.peers

# What llama.cpp (llama-vocab.cpp) lists for the pre-tokenizer `smollm`; the last alternative is what its splitter does
# with white space that no alternative takes. transformers' own reading of the GGUF leaves the digits out.
DIGIT = regex.compile(r"\p{N}|\P{N}+")
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


class ByteBpe:
    """Byte-pair encoding of the GGUF's vocabulary in plain Python: the best-ranked pair of a word first."""

    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        self.ids = {token: i for i, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
        merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self.letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        self.word = cache(self._word)

    def encode(self, text):
        words = (word for piece in DIGIT.findall(text) for word in WORD.findall(piece))
        return [i for word in words for i in self.word(word)]

    def _word(self, word):
        parts = [self.letters[byte] for byte in word.encode()]
        while True:
            ranked = [(self.ranks.get(pair, np.inf), at) for at, pair in enumerate(pairwise(parts))]
            rank, at = min(ranked, default=(np.inf, 0))
            if rank == np.inf:
                return [self.ids[part] for part in parts]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(smollm2.folder())


@pytest.fixture(scope="module")
def oracle():
    return ByteBpe(smollm2.gguf_path())


def test_wikitext_has_the_measured_number_of_ids_and_those_of_plain_python(tokenizer, oracle):
    text = smollm2.wikitext()
    ids = tokenizer.encode(text)
    assert ids.size == 312_144
    assert ids.tolist() == oracle.encode(text)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "text",
    [" ", "  12345 x", "12 345,67", "été 漢字 😀😀", "I'll we've\n\n\n  it's", "f(x):\n\treturn x**2\n", "½ ² ٣ Ⅷ"],
)
def test_short_texts_have_the_ids_of_plain_python(tokenizer, oracle, text):
    assert tokenizer.encode(text).tolist() == oracle.encode(text)


def test_no_bos_is_added_and_im_end_ends_a_text(tokenizer):
    assert not tokenizer.adds_bos
    assert tokenizer.eos_ids == set(tokenizer.encode("<|im_end|>").tolist()) == {2}


def test_transformers_reads_tokenizer_and_chat_template_alike(tokenizer):
    theirs = AutoTokenizer.from_pretrained(smollm2.folder())
    text = smollm2.wikitext()[:20_000]
    assert tokenizer.encode_prompt(text).tolist() == theirs(text).input_ids
    for messages in ([{"role": "user", "content": "Hi"}], [{"role": "system", "content": "s"}]):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render_chat(tokenizer.chat_template, messages, tokenizer.special_tokens) == expected


def test_every_tensor_is_what_transformers_dequantizes_from_the_gguf():
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(smollm2.folder()))
    theirs = load_gguf_checkpoint(str(smollm2.gguf_path()), return_tensors=True, model_to_load=names)["tensors"]
    ours = rq.open(smollm2.folder())
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name].numpy().view(np.uint32), theirs[name].numpy().view(np.uint32), name)
