"""An importance matrix from a text: how large the inputs of every column of every matrix are (spec/imatrix.md)."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from refquant.arrays import Float32, Float64, Int64
from refquant.checkpoints.imatrix import Imatrix, ImatrixEntry
from refquant.errors import NonFiniteError, RefquantError
from refquant.models.corpus import Literal, Text, make_corpus
from refquant.models.gguf_architectures import BLOCK
from refquant.models.model import Model
from refquant.models.weights import Wrapped, product

DEFAULT_WINDOW = 512  # llama-imatrix's own
_HEAD = "output.weight"

OnTokens: TypeAlias = Callable[[int, int], None]
"""Told how many tokens have been seen so far, and how many there are in all."""


@dataclass(eq=False)
class _Watched(Wrapped):
    """A weight that adds up the squares of what it is multiplied with.

    Attributes:
        sums: float64 (n,), Σ x² of each column, the squares rounded to float32.
        rows: how many rows of x it has seen.
    """

    sums: Float64 = field(init=False)
    rows: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.sums = np.zeros(self.weight.shape[1])

    def linear(self, x: Float32) -> Float32:
        flat = x.reshape(-1, x.shape[-1])  # (tokens, n)
        sums = np.square(flat).sum(0, dtype=np.float64)
        with self._lock:
            self.sums += sums
            self.rows += len(flat)
        return product(x, self.weight)


def importance_matrix(
    model: Model,
    text: Text,
    *,
    window: int | None = None,
    bos: str = "auto",
    limit: int | None = None,
    head: bool = False,
    dataset: str = "text",
    on_tokens: OnTokens | None = None,
) -> Imatrix:
    """Run a text through a model and collect the importance of every column of every matrix in its blocks.

    The text is cut into whole windows, as llama-imatrix does; what is left over at the end is not seen, and a special
    token spelt in it is text. Windows run one after another and sums are float64 until the end, so that the result
    depends on no batch size.

    Args:
        model: from `load_model`, of a GGUF file or a Hugging Face folder.
        text: one text or one array of token ids, or several of either.
        window: tokens seen together; by default 512, or the model's positions where those are fewer.
        bos: "always", "never", or "auto": text gets BOS where the tokenizer adds one. BOS is also fed in place of each
            window's first token.
        limit: the first so many tokens alone, BOS not counted.
        head: collect for the head (`output.weight`) too.
        dataset: what the file calls the text.
        on_tokens: called with the tokens seen so far and those in all, for a progress bar.

    Returns:
        Entries under GGUF's tensor names (`blk.0.attn_q.weight`), in the order of the blocks.

    Raises:
        RefquantError: no document holds a whole window, or as for `perplexity`.
        NonFiniteError: an activation leaves float32's range; names the tensor.

    Source: llama.cpp, tools/imatrix/imatrix.cpp.
    """
    positions = model.config.max_positions
    window = min(positions, DEFAULT_WINDOW) if window is None else window
    if not 1 <= window <= positions:
        raise RefquantError(f"window = {window} given; 1 … {positions}, the model's positions, are possible")
    tokenizer = Literal(model.tokenizer) if model.tokenizer else None
    corpus = make_corpus(text, tokenizer, model.config.vocab_size, bos, limit)
    bos_id = model.tokenizer.bos_id if model.tokenizer and corpus.bos == "always" else None
    windows = [
        _with_bos(ids[begin : begin + window], bos_id)
        for ids in corpus.documents
        for begin in range(0, len(ids) - window + 1, window)
    ]
    if not windows:
        longest = max(map(len, corpus.documents))
        raise RefquantError(f"window = {window} given; the longest document has {longest} tokens: there is none to see")
    names = watched_names(model, head)
    watched = {name: _Watched(model.weights[stored]) for name, stored in names.items()}
    watching = model.with_weights({names[name]: weight for name, weight in watched.items()})
    for number, ids in enumerate(windows, 1):
        hidden = watching.hidden(ids[None])  # (1, window, hidden)
        if head:
            watching.logits(hidden)
        if on_tokens:
            on_tokens(number * window, len(windows) * window)
    entries = {name: _entry(name, weight) for name, weight in watched.items()}
    return Imatrix(entries, (dataset,), len(windows), window)


def watched_names(model: Model, head: bool) -> dict[str, str]:
    """The model's own name of every matrix that is collected for, by GGUF's name.

    Raises:
        RefquantError: the head is asked for and is the token embedding, for which llama.cpp collects nothing.
    """
    if head and model.names.head == model.names.embedding:
        raise RefquantError("head = True given; this model's head is its token embedding: there is no output.weight")
    names = {
        f"blk.{layer}.{BLOCK[role]}.weight": f"{stem}.weight"
        for layer in range(model.config.num_layers)
        for role, stem in model.names.block(layer).items()
        if not role.endswith("norm")
    }
    return names | ({_HEAD: model.names.head} if head else {})


def _with_bos(ids: Int64, bos_id: int | None) -> Int64:
    return ids if bos_id is None else np.concatenate([[bos_id], ids[1:]])


def _entry(name: str, watched: _Watched) -> ImatrixEntry:
    with np.errstate(over="ignore"):  # an overflow becomes an infinity, which is reported by name
        sums = watched.sums.astype(np.float32)
    if not np.isfinite(sums).all():
        column = int(np.argmin(np.isfinite(sums)))
        raise NonFiniteError(
            f"{name}: the squares of what enters column {column} add up to {watched.sums[column]:.6g}, beyond float32 "
            f"(at most {np.finfo(np.float32).max:.3g}): the model's activations are not finite or far too large"
        )
    return ImatrixEntry(sums[None], np.array([watched.rows], np.int64))
