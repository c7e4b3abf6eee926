"""The metadata of the output, in llama-quantize's order (spec/file_types.md, section 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from refquant.checkpoints import gguf_values
from refquant.checkpoints.gguf_split import SPLIT_KEYS
from refquant.checkpoints.gguf_values import Value
from refquant.checkpoints.imatrix_record import Imatrix
from refquant.conversion.order import output_order
from refquant.conversion.overrides import LONGEST_TEXT, Override

if TYPE_CHECKING:
    from refquant.conversion.plan import Plan
    from refquant.conversion.source import Source

QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION of ggml.h
GUESSED: Final = 1024

# The file type that llama.cpp guesses of the type that most tensors have; of any other it guesses F32.
_GUESSES: Final = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K": 12,
    "Q4_K": 15,
    "Q5_K": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ2_S": 28,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "NVFP4": 39,
    "Q1_0": 40,
    "Q2_0": 41,
}


@dataclass(frozen=True)
class ImatrixSource:
    """An importance matrix, and the file it came from, whose name the output mentions; no name, no mention."""

    imatrix: Imatrix
    file: str = ""

    def overrides(self) -> tuple[Override, ...]:
        """The values that tell of it; texts are cut to what llama-quantize keeps of them."""
        values = []
        if self.file:
            values.append(Override("quantize.imatrix.file", gguf_values.string(_cut(self.file))))
        if self.imatrix.datasets:
            values.append(Override("quantize.imatrix.dataset", gguf_values.string(_cut(self.imatrix.datasets[0]))))
        values.append(Override("quantize.imatrix.entries_count", gguf_values.u32(len(self.imatrix.entries))))
        if self.imatrix.chunk_count > 0:
            values.append(Override("quantize.imatrix.chunks_count", gguf_values.u32(self.imatrix.chunk_count)))
        return tuple(values)


def output_metadata(
    source: "Source", plan: "Plan", overrides: Sequence[Override], imatrix: ImatrixSource | None
) -> dict[str, Value]:
    """The input's values, without those of its split; then what the conversion says, each moved to the end.

    Args:
        source: the input.
        plan: the conversion.
        overrides: the user's.
        imatrix: what the encoders looked at.
    """
    values = {key: value for key, value in source.typed_metadata.items() if key not in SPLIT_KEYS}
    number = plan.file_type.number
    said = [
        Override("general.quantization_version", gguf_values.u32(QUANTIZATION_VERSION)),
        Override("general.file_type", gguf_values.u32(_file_type_of(source) if number is None else number)),
        *overrides,
        *(imatrix.overrides() if imatrix else ()),
    ]
    if plan.blocks is not None:
        said.append(Override(f"{plan.model.architecture}.block_count", gguf_values.u32(plan.blocks)))
    return overridden(values, said)


def overridden(values: Mapping[str, Value], overrides: Sequence[Override]) -> dict[str, Value]:
    """The values with some set: each is taken out where it was and put at the end."""
    result = dict(values)
    for key, value in overrides:
        result.pop(key, None)
        result[key] = value
    return result


def _file_type_of(source: "Source") -> int:
    """The input's own file type; without one, that of the type that most tensors have, marked as a guess."""
    declared = source.typed_metadata.get("general.file_type")
    if declared is not None and isinstance(declared.value, int):
        return declared.value
    counts: dict[str, int] = {}
    most = "F32"
    for name in sorted(source.tensors, key=output_order):  # of two types as frequent, the first to be so
        kind = source.tensors[name].dtype
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] > counts.get(most, 0):
            most = kind
    return GUESSED | _GUESSES.get(most, 0)


def _cut(text: str) -> str:
    return text.encode("utf-8", "surrogateescape")[:LONGEST_TEXT].decode("utf-8", "surrogateescape")
