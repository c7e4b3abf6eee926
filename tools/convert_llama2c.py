"""Make the embedded model: a Hugging Face folder from llama2.c's stories260K.bin and tok512.bin.

    python tools/convert_llama2c.py stories260K.bin tok512.bin refquant/models/embedded/stories260K

Both sources come from https://huggingface.co/karpathy/tinyllamas (folder stories260K, MIT licence); their layouts are
read off llama2.c's run.c and export.py. The same sources give the same bytes on every run.

What differs between the two worlds:

- llama2.c rotates neighbouring rows (2i, 2i + 1) of a head's queries and keys, Hugging Face row i with row i + d/2;
  the rows of q_proj and k_proj are reordered, and nothing else changes.
- llama2.c merges the neighbouring pair whose *token* has the best score, the leftmost one first. A tokenizer.json ranks
  *pairs*. Two pairs that make one token become neighbours in rank, and `check_ties` shows that their order cannot
  change what comes out.
- In llama2.c the names of special tokens inside a text are text. So tokenizer.json declares no added tokens, and the
  vocabulary keeps plain spaces where SentencePiece writes U+2581, which llama2.c takes for an unknown character.
- The model ends a story with BOS, the only delimiter in its training data: generation_config.json stops there too.
"""

import argparse
import hashlib
import json
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save

SOURCES = {
    "stories260K.bin": "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
    "tok512.bin": "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312",
}
UNK, BOS, EOS = 0, 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
FIRST_BYTE, FIRST_PIECE = 3, 259  # ids 3 … 258 are the bytes 0 … 255

LICENSE = """\
stories260K: a 260K-parameter Llama trained on TinyStories, and its 512-token vocabulary.
Source: https://huggingface.co/karpathy/tinyllamas (folder stories260K), converted by tools/convert_llama2c.py.

MIT License

Copyright (c) 2023 Andrej Karpathy

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""


class Header(NamedTuple):
    """The seven int32 at the start of a llama2.c checkpoint."""

    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    max_positions: int

    @property
    def head_dim(self):
        return self.dim // self.heads


class Piece(NamedTuple):
    """A vocabulary entry of llama2.c's tokenizer."""

    text: str
    score: float


def read_checkpoint(data):
    """The header and the float32 arrays of a checkpoint with a tied head, by their names in run.c."""
    header = Header(*struct.unpack_from("<7i", data))
    if header.vocab_size < 0:
        raise SystemExit("the checkpoint has an untied head, which this script does not expect")
    dim, layers, kv_dim = header.dim, header.layers, header.kv_heads * header.head_dim
    shapes = {
        "token_embedding": (header.vocab_size, dim),
        "rms_att": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, kv_dim, dim),
        "wv": (layers, kv_dim, dim),
        "wo": (layers, dim, dim),
        "rms_ffn": (layers, dim),
        "w1": (layers, header.hidden_dim, dim),
        "w2": (layers, dim, header.hidden_dim),
        "w3": (layers, header.hidden_dim, dim),
        "rms_final": (dim,),
        "rope_tables": (2, header.max_positions, header.head_dim // 2),  # left over in the file; run.c skips them
    }
    floats = np.frombuffer(data, "<f4", offset=struct.calcsize("<7i"))
    ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
    if ends[-1] != floats.size:
        raise SystemExit(f"the checkpoint has {floats.size} floats; its header asks for {ends[-1]}")
    parts = np.split(floats, ends[:-1])
    return header, {name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def halves(rows, heads):
    """Rows of q or k from neighbouring pairs (2i, 2i + 1) to two halves (i, i + d/2) in every head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])  # (heads, d/2, 2, dim)
    return pairs.swapaxes(1, 2).reshape(rows.shape)  # (heads · 2 · d/2, dim)


def tensors(header, w):
    """The same weights under Hugging Face's names; the tied head is not stored twice."""
    named = {"model.embed_tokens.weight": w["token_embedding"], "model.norm.weight": w["rms_final"]}
    for i in range(header.layers):
        block = {
            "input_layernorm": w["rms_att"][i],
            "self_attn.q_proj": halves(w["wq"][i], header.heads),
            "self_attn.k_proj": halves(w["wk"][i], header.kv_heads),
            "self_attn.v_proj": w["wv"][i],
            "self_attn.o_proj": w["wo"][i],
            "post_attention_layernorm": w["rms_ffn"][i],
            "mlp.gate_proj": w["w1"][i],
            "mlp.down_proj": w["w2"][i],
            "mlp.up_proj": w["w3"][i],
        }
        named |= {f"model.layers.{i}.{name}.weight": array for name, array in block.items()}
    return {name: np.ascontiguousarray(array, "<f4") for name, array in named.items()}


def config(header):
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "head_dim": header.head_dim,
        "hidden_act": "silu",
        "hidden_size": header.dim,
        "intermediate_size": header.hidden_dim,
        "max_position_embeddings": header.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": header.heads,
        "num_hidden_layers": header.layers,
        "num_key_value_heads": header.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": header.vocab_size,
    }


def read_vocabulary(data):
    """The pieces of a tokenizer file: a maximum length, then score, length and bytes of each."""
    pieces, at = [], 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        pieces.append(Piece(data[at - length : at].decode(), score))
    special = list(SPECIAL)
    if [p.text.strip() for p in pieces[:FIRST_BYTE]] != special:  # export.py writes line breaks around two of them
        raise SystemExit(f"the vocabulary starts with {pieces[:FIRST_BYTE]}; expected {special}")
    if [p.text for p in pieces[FIRST_BYTE:FIRST_PIECE]] != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise SystemExit(f"ids {FIRST_BYTE} … {FIRST_PIECE - 1} of the vocabulary are not the 256 bytes in order")
    return [Piece(name, 0.0) for name in SPECIAL] + pieces[FIRST_BYTE:]


def splits(text, known):
    """Every pair of known pieces that makes `text`, the shortest left piece first."""
    return [(text[:k], text[k:]) for k in range(1, len(text)) if text[:k] in known and text[k:] in known]


def check_ties(pieces):
    """Raise unless the order among pairs that make the same token can never change an encoding.

    For a token T that several pairs make, it cannot when (1) no two different pairs of T can overlap, so that each
    occurrence is merged whatever comes first; (2) what a fresh T merges into before the next T is looked at (tokens of
    a better score) takes no T and no part of one from its neighbours; (3) it takes them from one side only, so that
    two Ts never compete for what stands between them.
    """
    score = {p.text: p.score for p in pieces}
    for token in (p.text for p in pieces[FIRST_PIECE:]):
        pairs = splits(token, score)
        if len(pairs) < 2:
            continue
        if any(p != q and p[1] == q[0] for p in pairs for q in pairs):
            raise SystemExit(f"pairs of {token!r} overlap: {pairs}")
        taken, grown = set(), [token]
        for core in grown:
            for bigger in (t for t, s in score.items() if s > score[token] and core in t and t != core):
                sides = [("right", b) for a, b in splits(bigger, score) if a == core]
                sides += [("left", a) for a, b in splits(bigger, score) if b == core]
                taken.update(sides)
                grown += [bigger] if sides and bigger not in grown else []
        parts = {token, *(part for pair in pairs for part in pair)}
        if {piece for _, piece in taken} & parts or len({side for side, _ in taken}) > 1:
            raise SystemExit(f"{token!r} is made by {pairs}, and their order matters: it goes on to take {taken}")


def tokenizer(pieces):
    """tokenizer.json: byte-pair merges ranked by the score of what they make."""
    known = {p.text for p in pieces}
    ranked = sorted((p for p in pieces[FIRST_PIECE:]), key=lambda p: -p.score)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Prepend", "prepend": " "},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": SPECIAL[BOS], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": SPECIAL[BOS], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": SPECIAL[BOS], "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {SPECIAL[BOS]: {"id": SPECIAL[BOS], "ids": [BOS], "tokens": [SPECIAL[BOS]]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": SPECIAL[UNK],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {p.text: i for i, p in enumerate(pieces)},
            "merges": [list(pair) for p in ranked for pair in splits(p.text, known)],
        },
    }


TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": SPECIAL[BOS],
    "clean_up_tokenization_spaces": False,
    "eos_token": SPECIAL[EOS],
    "model_max_length": 512,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": SPECIAL[UNK],
}


def convert(checkpoint, vocabulary, folder):
    """Write the Hugging Face folder from the bytes of the two sources."""
    header, weights = read_checkpoint(checkpoint)
    pieces = read_vocabulary(vocabulary)
    check_ties(pieces)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(save(tensors(header, weights), metadata={"format": "pt"}))
    documents = {
        "config.json": config(header),
        "generation_config.json": {"bos_token_id": BOS, "eos_token_id": [BOS, EOS]},
        "tokenizer.json": tokenizer(pieces),
        "tokenizer_config.json": TOKENIZER_CONFIG,
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=None if name == "tokenizer.json" else 2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="\n")
    (folder / "LICENSE").write_text(LICENSE, encoding="utf-8", newline="\n")


def source(path):
    """The bytes of a source file, if they are the ones that this script was written for."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SOURCES.get(path.name):
        raise SystemExit(f"{path}: SHA-256 {digest}; expected {SOURCES.get(path.name)} under one of {list(SOURCES)}")
    return data


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="stories260K.bin")
    parser.add_argument("vocabulary", type=Path, help="tok512.bin")
    parser.add_argument("folder", type=Path, help="where the Hugging Face folder goes")
    args = parser.parse_args()
    convert(source(args.checkpoint), source(args.vocabulary), args.folder)


if __name__ == "__main__":
    main()
