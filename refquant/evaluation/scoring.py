"""A model run over a corpus: the logits of every scored token, in one fixed order, within a memory bound."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from refquant.arrays import Float32, Float64, Int64
from refquant.errors import NonFiniteError, RefquantError
from refquant.evaluation.windows import Window, check_windows, windows_of
from refquant.models.corpus import Corpus, Literal, Text, Tokenizer, make_corpus

DEFAULT_WINDOW = 2048  # or the model's positions, where those are fewer
LLAMA_CPP_WINDOW = 512  # llama-perplexity's own default
BATCH_TOKENS = 8192  # fed together, unless one window alone is longer
LOGITS_BYTES = 64 << 20  # of logits at a time

OnScored: TypeAlias = Callable[[int, int], None]
"""Told how many tokens have been scored so far, and how many there are in all."""


class Config(Protocol):
    """What is asked of a model's configuration."""

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""

    @property
    def max_positions(self) -> int:
        """Tokens that a window may hold."""


class LanguageModel(Protocol):
    """What perplexity asks of a model; `refquant.load_model` gives one, and any object like it will do."""

    @property
    def config(self) -> Config:
        """Sizes."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """What turns text into ids."""

    def hidden(self, ids: Int64, *, keep: slice) -> Float32:
        """Final hidden states: ids (batch, tokens), and the positions wanted, to (batch, kept, hidden)."""

    def logits(self, hidden: Float32) -> Float32:
        """The head: (rows, hidden) to logits (rows, vocabulary), an array that the caller may overwrite."""


class Passage(NamedTuple):
    """A window of one document."""

    document: int
    window: Window


class Chunk(NamedTuple):
    """Some of a plan's scored tokens.

    Attributes:
        rows: which of them, counted over the whole plan.
        targets: their ids, int64 (rows,).
        logits: float32 (rows, vocabulary), which the receiver may overwrite.
    """

    rows: slice
    targets: Int64
    logits: Float32


@dataclass(frozen=True, eq=False)
class Plan:
    """A corpus, and the windows in which it is scored.

    Attributes:
        corpus: the documents.
        method: "sliding", "chunked", "per-document" or "llama.cpp".
        window: tokens in a window.
        stride: tokens between the begins of neighbouring windows.
        window_bos: the id that is fed in place of every window's first token, as llama.cpp does; None for none.
    """

    corpus: Corpus
    method: str
    window: int
    stride: int
    window_bos: int | None = None

    def fed_ids(self, passage: Passage) -> Int64:
        """The ids of a window that go through the model."""
        window = passage.window
        ids = self.corpus.documents[passage.document][window.begin : window.end - 1]
        return ids if self.window_bos is None else np.concatenate([[self.window_bos], ids[1:]])

    @property
    def passages(self) -> list[Passage]:
        """Every window of every document, in order."""
        return [
            Passage(number, window)
            for number, ids in enumerate(self.corpus.documents)
            for window in windows_of(self.method, len(ids), self.window, self.stride)
        ]

    @property
    def batches(self) -> list[list[Passage]]:
        """Neighbouring windows of equal length, together up to BATCH_TOKENS fed tokens."""
        batches = []
        for fed, group in itertools.groupby(self.passages, key=lambda passage: passage.window.fed):
            passages, size = list(group), max(1, BATCH_TOKENS // fed)
            batches += [passages[i : i + size] for i in range(0, len(passages), size)]
        return batches

    @property
    def fed_tokens(self) -> int:
        """Tokens that go through the model, those of overlapping windows counted each time."""
        return sum(window.fed for _, window in self.passages)

    @property
    def scored_tokens(self) -> int:
        """Tokens whose probability counts."""
        return sum(window.scored for _, window in self.passages)

    def check_finite(self, nll: Float64) -> None:
        """Raise NonFiniteError that names the first token whose probability is not a number above zero."""
        finite = np.isfinite(nll)
        index = len(nll) if finite.all() else int(np.argmin(finite))
        for document, window in self.passages:
            if index < window.scored:
                raise NonFiniteError(
                    f"token {window.first + index} of document {document}: its log-probability is "
                    f"{-nll[~finite][0]}, since weights or activations leave float32's range; "
                    "there is no perplexity: inspect the checkpoint, or take a scheme of more bits"
                )
            index -= window.scored


def make_plan(
    model: LanguageModel,
    text: Text,
    *,
    method: str = "sliding",
    window: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    limit: int | None = None,
) -> Plan:
    """Check everything that can be wrong before the model runs: see `refquant.perplexity` for the arguments."""
    positions = model.config.max_positions
    if window is None:
        window = min(positions, LLAMA_CPP_WINDOW if method == "llama.cpp" else DEFAULT_WINDOW)
    if stride is None:
        stride = max(1, window // 2) if method == "sliding" else window
    check_windows(method, window, stride)
    if window > positions:
        raise RefquantError(f"window = {window} given; the model has {positions} positions: take a shorter window")
    tokenizer = Literal(model.tokenizer) if method == "llama.cpp" and model.tokenizer else model.tokenizer
    corpus = make_corpus(text, tokenizer, model.config.vocab_size, bos, limit)
    return plan_of(corpus, method, window, stride, tokenizer)


def plan_of(corpus: Corpus, method: str, window: int, stride: int, tokenizer: Tokenizer | None) -> Plan:
    """The plan of a corpus whose method, window and stride have been checked.

    Raises:
        RefquantError: no document is as long as one of llama.cpp's windows.
    """
    window_bos = tokenizer.bos_id if tokenizer and method == "llama.cpp" and corpus.bos == "always" else None
    plan = Plan(corpus, method, window, stride, window_bos)
    if not plan.scored_tokens:
        longest = max(map(len, corpus.documents))
        raise RefquantError(
            f"window = {window} given with method {method!r}, which scores whole windows alone; the longest document "
            f"has {longest} tokens: take a shorter window or more text"
        )
    return plan


def scored_logits(model: LanguageModel, plan: Plan) -> Iterator[Chunk]:
    """The logits of every scored token, chunk by chunk, in the order of `plan.passages`.

    The chunks depend on the plan and the vocabulary alone, so that two runs of one model give the same bits.
    """
    documents = plan.corpus.documents
    step = max(1, LOGITS_BYTES // (4 * model.config.vocab_size))
    done = 0
    for batch in plan.batches:
        ids = np.stack([plan.fed_ids(passage) for passage in batch])  # (batch, fed)
        targets = np.concatenate([documents[d][w.first : w.end] for d, w in batch])  # (scored of all,)
        most = max(w.scored for _, w in batch)  # a document's first window scores more than those that follow it
        kept = model.hidden(ids, keep=slice(ids.shape[1] - most, None))  # (batch, most, hidden)
        hidden = np.concatenate([rows[most - w.scored :] for rows, (_, w) in zip(kept, batch, strict=True)])
        for begin in range(0, len(targets), step):
            some = targets[begin : begin + step]
            yield Chunk(slice(done, done + len(some)), some, model.logits(hidden[begin : begin + step]))
            done += len(some)
