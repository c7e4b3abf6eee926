import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import refquant as rq
from refquant.models import embedded
from refquant.models.generation import generate

pytestmark = pytest.mark.peers

STORIES = [s.strip() for s in embedded.text_path().read_text(encoding="utf-8").split("<|endoftext|>")]


@pytest.fixture(scope="module")
def ours():
    return rq.load_model(embedded.path())


def test_transformers_reads_the_embedded_tokenizer_alike(ours):
    theirs = AutoTokenizer.from_pretrained(embedded.path())
    for story in STORIES:
        ids = ours.tokenizer.encode_prompt(story)
        assert theirs(story).input_ids == ids.tolist()
        assert theirs.decode(ids, skip_special_tokens=True) == ours.tokenizer.decode(ids) == story


def test_transformers_writes_the_same_greedy_text(ours):
    theirs = AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32)
    written = theirs.generate(torch.tensor([[1]]), max_new_tokens=150, do_sample=False)
    assert written[0, 1:].tolist() == list(generate(ours, [1], max_tokens=150))
