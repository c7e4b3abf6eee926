"""The tensor types of GGUF files as data: numbers, names and block sizes (spec/gguf.md, section 3).

What the bytes of a block mean is a format's business; a file can be listed, checked and copied without it.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class TensorType:
    """One of ggml's types as a file sees it.

    Attributes:
        name: ggml's name in upper case ("Q4_K"); in lower case the name of refquant's format.
        type_id: its number in a file (`enum ggml_type`).
        block_size: weights in a block; a row holds whole blocks.
        block_bytes: bytes of a block.
        halves: where in a block a big-endian file swaps two bytes; None where nobody has defined that.
    """

    name: str
    type_id: int
    block_size: int
    block_bytes: int
    halves: tuple[int, ...] | None = None

    @property
    def bits_per_weight(self) -> float:
        """Bits of a block over its weights."""
        return 8 * self.block_bytes / self.block_size


# Source: ggml.h (`enum ggml_type`) and the type traits of ggml.c, ggml 0.25.3. 4, 5, 31–33 and 36–38 were types once.
TENSOR_TYPES: Final[dict[int, TensorType]] = {
    kind.type_id: kind
    for kind in (
        TensorType("F32", 0, 1, 4),
        TensorType("F16", 1, 1, 2),
        TensorType("Q4_0", 2, 32, 18, halves=(0,)),
        TensorType("Q4_1", 3, 32, 20),
        TensorType("Q5_0", 6, 32, 22),
        TensorType("Q5_1", 7, 32, 24),
        TensorType("Q8_0", 8, 32, 34, halves=(0,)),
        TensorType("Q8_1", 9, 32, 36),
        TensorType("Q2_K", 10, 256, 84),
        TensorType("Q3_K", 11, 256, 110),
        TensorType("Q4_K", 12, 256, 144, halves=(0, 2)),
        TensorType("Q5_K", 13, 256, 176),
        TensorType("Q6_K", 14, 256, 210, halves=(208,)),
        TensorType("Q8_K", 15, 256, 292),
        TensorType("IQ2_XXS", 16, 256, 66),
        TensorType("IQ2_XS", 17, 256, 74),
        TensorType("IQ3_XXS", 18, 256, 98),
        TensorType("IQ1_S", 19, 256, 50),
        TensorType("IQ4_NL", 20, 32, 18),
        TensorType("IQ3_S", 21, 256, 110),
        TensorType("IQ2_S", 22, 256, 82),
        TensorType("IQ4_XS", 23, 256, 136),
        TensorType("I8", 24, 1, 1),
        TensorType("I16", 25, 1, 2),
        TensorType("I32", 26, 1, 4),
        TensorType("I64", 27, 1, 8),
        TensorType("F64", 28, 1, 8),
        TensorType("IQ1_M", 29, 256, 56),
        TensorType("BF16", 30, 1, 2),
        TensorType("TQ1_0", 34, 256, 54),
        TensorType("TQ2_0", 35, 256, 66),
        TensorType("MXFP4", 39, 32, 17, halves=()),
        TensorType("NVFP4", 40, 64, 36, halves=()),
        TensorType("Q1_0", 41, 128, 18),
        TensorType("Q2_0", 42, 64, 18),
    )
}

BY_NAME: Final[dict[str, TensorType]] = {kind.name: kind for kind in TENSOR_TYPES.values()}

REMOVED: Final[dict[int, str]] = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
