import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import refquant as rq
from refquant.models import embedded
from refquant.models.generation import generate
from refquant.models.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(embedded.path())
STORIES = [s.strip() for s in embedded.text_path().read_text(encoding="utf-8").split("<|endoftext|>")]

# llama2.c, doc/stories260K.md
GREEDY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high."
)
# SHA-256 of the ids, as little-endian int32, that run.c of llama2.c (commit 350e04f) gives for the twelve stories one
# after the other, BOS first in each, with tok512.bin.
STORY_IDS_SHA256 = "b7d7666e5d62e17445ba969b1910b3425599ad6298c3d854a80b2f5ece66419f"


def vocabulary():
    pieces = json.loads((embedded.path() / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    return {piece: i for piece, i in pieces.items() if i >= 259}  # before it: three special tokens and 256 bytes


PIECES = vocabulary()
TEXTS = {i: piece for piece, i in PIECES.items()}


def llama2c_encode(text):
    """The ids of a text by the rule of llama2.c, read off its description: merge what gives the best-scored token.

    In tok512.bin the score of token i is 259 − i, so the best is the lowest id; of equal ones, the leftmost.
    """
    ids = []
    for character in " " + text if text else "":
        if character in PIECES:
            ids.append(PIECES[character])
        else:
            ids.extend(byte + 3 for byte in character.encode())
    while True:
        joined = [TEXTS.get(a, "\0") + TEXTS.get(b, "\0") for a, b in pairwise(ids)]
        merges = [(PIECES[text], at) for at, text in enumerate(joined) if text in PIECES]
        if not merges:
            return ids
        best, at = min(merges)
        ids[at : at + 2] = [best]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story[:16])
def test_a_story_has_the_ids_of_llama2c(story):
    assert TOKENIZER.encode(story).tolist() == llama2c_encode(story)


def test_the_stories_have_the_ids_that_run_c_printed():
    ids = np.concatenate([TOKENIZER.encode_prompt(story) for story in STORIES])
    assert ids.size == 3920
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == STORY_IDS_SHA256


# Letters around the tokens that several pairs make ("her" of "h" "er" and "he" "r"), where a wrong order would show.
@given(
    st.lists(st.sampled_from(["h", "he", "her", "er", "r", "e", "nd", " ", " s", "t", "ve", "out", "l"])).map("".join)
)
@example("")
@example(" ")
@example("herher  herer he r")
def test_letters_merge_in_the_order_of_llama2c(text):
    assert TOKENIZER.encode(text).tolist() == llama2c_encode(text)


@given(st.text(st.sampled_from("\u2581<s>0x41 \n\0é“😀") | st.characters(codec="utf-8")))
@example("<s></s><unk><0x41>")
@example("\u2581a")
@example("\n<s>\n")
def test_any_text_has_the_ids_of_llama2c(text):
    assert TOKENIZER.encode(text).tolist() == llama2c_encode(text)


def test_the_folder_is_a_tied_llama_of_float32():
    config = json.loads((embedded.path() / "config.json").read_text(encoding="utf-8"))
    tensors = load_file(embedded.path() / "model.safetensors")
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in tensors
    assert {t.dtype for t in tensors.values()} == {np.dtype(np.float32)}
    assert len(tensors) == 5 * 9 + 2
    assert tensors["model.embed_tokens.weight"].shape == (512, 64)
    assert tensors["model.layers.4.self_attn.k_proj.weight"].shape == (4 * 8, 64)
    assert tensors["model.layers.4.mlp.down_proj.weight"].shape == (64, 172)
    assert sum(t.size for t in tensors.values()) == 260_032


def test_a_text_begins_with_bos_and_ends_at_bos_or_eos():
    assert (TOKENIZER.bos_id, TOKENIZER.eos_ids, TOKENIZER.adds_bos) == (1, {1, 2}, True)


def test_the_licences_are_beside_what_they_cover():
    assert "MIT License" in (embedded.path() / "LICENSE").read_text(encoding="utf-8")
    assert "CDLA-Sharing-1.0" in (embedded.text_path().parent / "LICENSE").read_text(encoding="utf-8")


def test_the_text_is_twelve_stories():
    assert len(STORIES) == 12
    assert all(STORIES)


def test_greedy_text_from_bos_is_the_published_one():
    tokens = generate(rq.load_model(embedded.path()), [TOKENIZER.bos_id], max_tokens=100)
    assert TOKENIZER.decode([TOKENIZER.bos_id, *tokens]).startswith(GREEDY)
