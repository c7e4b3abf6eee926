"""The file type that a GGUF declares, against the types that its tensors have (traps: a "Q4_K_M" that is not)."""

import math
from dataclasses import dataclass
from typing import Final

from refquant.checkpoints.ggml_types import BY_NAME
from refquant.checkpoints.gguf import GgufCheckpoint
from refquant.conversion.file_types import FILE_TYPES

KEY: Final = "general.file_type"
GUESSED: Final = 1024  # a bit that llama.cpp sets where it has guessed the file type

# Names and main types by number: what llama.cpp's quantizer makes, and what it names or named (`enum llama_ftype`).
NAMES: Final[dict[int, tuple[str, str | None]]] = {
    **{kind.number: (kind.name, kind.base) for kind in FILE_TYPES if kind.number is not None},
    4: ("Q4_1_SOME_F16", "Q4_1"),
    5: ("Q4_2", None),
    6: ("Q4_3", None),
    33: ("Q4_0_4_4", None),
    34: ("Q4_0_4_8", None),
    35: ("Q4_0_8_8", None),
    39: ("NVFP4", "NVFP4"),
}


@dataclass(frozen=True)
class DeclaredType:
    """What a file says it is, and what it holds. Matrices are the tensors of more than one axis.

    Attributes:
        number: `general.file_type`, without the bit that says it was guessed.
        name: the file type's name ("Q4_K_M"); None for a number that llama.cpp does not know.
        guessed: whether that bit is set.
        base: the type that most matrices of such a file have; None where there is none.
        nominal_bits: bits a weight of the base.
        actual_bits: bits a weight of all matrices together; None where there are none.
        base_share: of the matrices' weights, how many are in the base type, 0 to 1.
    """

    number: int
    name: str | None
    guessed: bool
    base: str | None
    nominal_bits: float | None
    actual_bits: float | None
    base_share: float | None


def declared_type(checkpoint: GgufCheckpoint) -> DeclaredType | None:
    """Hold the declared file type against the tensors; None where the file declares none (or no natural number)."""
    declared = checkpoint.metadata.get(KEY)
    if not isinstance(declared, int) or isinstance(declared, bool) or declared < 0:
        return None
    number = declared & ~GUESSED
    name, base = NAMES.get(number, (None, None))
    matrices = [tensor for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1]
    weights = sum(tensor.size for tensor in matrices)
    of_base = sum(tensor.size for tensor in matrices if tensor.dtype == base)
    return DeclaredType(
        number=number,
        name=name,
        guessed=declared != number,
        base=base,
        nominal_bits=BY_NAME[base].bits_per_weight if base else None,
        actual_bits=8 * sum(tensor.nbytes for tensor in matrices) / weights if weights else None,
        base_share=of_base / weights if weights and base else None,
    )


def in_words(declared: DeclaredType | None) -> list[str]:
    """Two lines, or one where nothing is declared: what is declared, what is there."""
    if declared is None:
        return ["declared: no file type"]
    name = declared.name or f"file type {declared.number}, which llama.cpp does not know"
    promise = f"declared: {name}{', which was guessed' if declared.guessed else ''}"
    if declared.nominal_bits is not None:
        promise += f": mostly {declared.base}, {declared.nominal_bits:.5g} bits a weight"
    if declared.actual_bits is None:
        return [promise, "actual: no matrices"]
    actual = f"actual: {declared.actual_bits:.2f} bits a weight in the matrices"
    if declared.base_share is not None:
        percent = math.floor(1000 * declared.base_share) / 10  # 100 % means all
        actual += f"; {percent:.1f} % of their weights are {declared.base}"
    return [promise, actual]
