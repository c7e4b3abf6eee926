"""What a model loses when it becomes a GGUF: its configuration against the one that the file's keys give back."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from refquant.conversion.tokenizer_metadata import PROBE
from refquant.models.config import Layer, ModelConfig
from refquant.models.gguf_tokenizer import from_metadata
from refquant.models.rope import Rope
from refquant.models.tokenizer import load_tokenizer

_TOLERANCE: Final = 1e-5  # keys are float32, and so are divisors of frequencies
_SAME: Final = ("activation", "head_dim", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "num_layers")
_NEAR: Final = ("attention_soft_cap", "final_soft_cap", "embedding_scale", "norm_epsilon")


def what_is_lost(config: ModelConfig, kept: ModelConfig) -> tuple[str, ...]:
    """Every way in which the two compute differently, in words.

    Args:
        config: the folder's configuration.
        kept: what reading the GGUF gives.
    """
    lost = [_differs(name, config, kept) for name in _SAME if getattr(config, name) != getattr(kept, name)]
    lost += [_differs(name, config, kept) for name in _NEAR if not _near(getattr(config, name), getattr(kept, name))]
    layers = list(zip(config.layers, kept.layers, strict=False))
    counts = Counter(words for ours, theirs in layers for words in _lost_of_layer(ours, theirs, config.max_positions))
    return (*lost, *(f"{words}, in {count} of {len(layers)} layers" for words, count in counts.items()))


def tokens_lost(folder: Path, metadata: Mapping[str, object]) -> tuple[str, ...]:
    """Whether the tokenizer that the keys describe gives other ids than the folder's tokenizer.json."""
    if not (folder / "tokenizer.json").is_file() or "tokenizer.ggml.model" not in metadata:
        return ()
    given, kept = load_tokenizer(folder).encode(PROBE), from_metadata(metadata).encode(PROBE)
    if np.array_equal(given, kept):
        return ()
    return (f"tokenizer: {len(kept)} ids of a probe text, which are not the {len(given)} of tokenizer.json",)


def _differs(name: str, config: ModelConfig, kept: ModelConfig) -> str:
    return f"{name} is {getattr(config, name)}; a GGUF of this architecture means {getattr(kept, name)}"


def _lost_of_layer(ours: Layer, theirs: Layer, length: int) -> Iterator[str]:
    window, kept = (layer.window if layer.window and layer.window < length else None for layer in (ours, theirs))
    if window != kept:
        yield f"attention slides a window of {window}; the GGUF's of {kept}"
    if not _near(ours.attention_scale, theirs.attention_scale):
        yield f"attention scores times {ours.attention_scale:.6g}; the GGUF's times {theirs.attention_scale:.6g}"
    if ours.rope is not None and theirs.rope is not None:
        names = f"{type(ours.rope).__name__}; the GGUF's as {type(theirs.rope).__name__}"
        if not _near(ours.rope.amplitude, theirs.rope.amplitude):
            yield f"rotary amplitude of {names}"
        if not all(_same_frequencies(ours.rope, theirs.rope, n) for n in (1, length, 2 * length)):
            yield f"rotary frequencies of {names}"


def _same_frequencies(ours: Rope, theirs: Rope, length: int) -> bool:
    if ours.dim != theirs.dim:
        return False
    return bool(np.allclose(ours.frequencies(length), theirs.frequencies(length), rtol=_TOLERANCE, atol=0))


def _near(ours: float | None, theirs: float | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return math.isclose(ours, theirs, rel_tol=_TOLERANCE)
