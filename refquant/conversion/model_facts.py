"""What the rules look at in a model's metadata (spec/file_types.md, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from refquant.checkpoints.text import quoted
from refquant.errors import RefquantError

# Layers of the models that llama.cpp calls 70B: src/models/{llama,qwen2,deci,olmo,jais2}.cpp.
_LAYERS_OF_70B: Final = {"llama": 80, "llama-embed": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}
_70B_ONLY_WITH_GROUPS: Final = ("llama", "llama-embed")
# Blocks beyond block_count: the router of src/models/granite-switch.cpp.
_FURTHER_LAYERS: Final = {"graniteswitch": 1}
_WITHOUT_LAYERS: Final = ("clip",)


@dataclass(frozen=True)
class ModelFacts:
    """The shape of a model, as far as it decides types.

    Attributes:
        architecture: `general.architecture`.
        layers: blocks, those for predicting further tokens included.
        experts: experts of a block; 0 where there are none.
        query_groups: query heads that share a key head, rounded down, in the first block; 0 without key heads.
        is_70b: one of the models that llama.cpp calls 70B.
    """

    architecture: str
    layers: int
    experts: int = 0
    query_groups: int = 1
    is_70b: bool = False

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> "ModelFacts":
        """Read the facts.

        Raises:
            RefquantError: a key that is missing, or not the number that it must be.
        """
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise RefquantError(
                f"general.architecture is {architecture!r}; a model's metadata names its architecture: "
                "is this file a model?"
            )
        if architecture in _WITHOUT_LAYERS:
            return cls(architecture, 0, query_groups=0)
        blocks = _number(metadata, f"{architecture}.block_count")
        experts = _number(metadata, f"{architecture}.expert_count", 0)
        heads = _number(metadata, f"{architecture}.attention.head_count", 0)
        key_heads = _number(metadata, f"{architecture}.attention.head_count_kv", heads)
        running = blocks - _number(metadata, f"{architecture}.nextn_predict_layers", 0)
        is_70b = running == _LAYERS_OF_70B.get(architecture)
        if architecture in _70B_ONLY_WITH_GROUPS:
            is_70b = is_70b and heads != key_heads and experts != 8
        return cls(
            architecture,
            blocks + _FURTHER_LAYERS.get(architecture, 0),
            experts,
            heads // key_heads if key_heads else 0,
            is_70b,
        )


def _number(metadata: Mapping[str, object], key: str, default: int | None = None) -> int:
    """An integer ≥ 0, of an array the first block's."""
    value = metadata.get(key, default)
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value):
        value = value[0]
    if value is None:
        raise RefquantError(f"{quoted(key)} is missing from the metadata; the rules for tensor types need it")
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 0:
        raise RefquantError(f"{quoted(key)} is {value!r}; the rules for tensor types need an integer ≥ 0")
    return int(value)
