"""The file types of llama.cpp as data: the type of most tensors, and the mix of others (spec/file_types.md).

Source of names, numbers and mixes: QUANT_OPTIONS in tools/quantize/quantize.cpp and src/llama-quant.cpp of llama.cpp
(ggml 0.25.3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from refquant.conversion.places import (
    ALWAYS,
    EIGHT_EXPERTS,
    FALCON,
    FOUR_EXPERTS,
    GROUPED,
    IMATRIX,
    INNER,
    NO_IMATRIX,
    NOT_FALCON,
    OUTER,
    When,
    first,
    first_part,
)
from refquant.errors import unknown_name


class Choice(NamedTuple):
    """A type, and when to take it; None stands for the file type's base."""

    type: str | None
    when: When = ALWAYS


@dataclass(frozen=True)
class FileType:
    """What `general.file_type` and the name of a file promise.

    Attributes:
        name: as llama.cpp prints it ("Q4_K_M").
        number: the value of `general.file_type`; None of COPY, which keeps the input's.
        base: the type of every tensor that no rule says otherwise of; None of COPY, which keeps each tensor's own.
        mix: by role, the first choice whose condition holds.
        head: the type of the output matrix, or of the token embedding that serves as one; a base of "Q8_0" stays.
        embedding: the type of a token embedding that is not also the output; None for the base.
        very_low: one of the types below 3 bits that know nothing of 70B models, and whose layers are counted.
    """

    name: str
    number: int | None
    base: str | None
    mix: Mapping[str, tuple[Choice, ...]] = field(default_factory=dict, repr=False)
    head: str = "Q6_K"
    embedding: str | None = None
    very_low: bool = False


def _projection(usual: str | None, falcon: str | None = None, eight: str | None = "Q5_K") -> tuple[Choice, ...]:
    """The choices for attn_output: falcon's first, then those of a model with 8 experts."""
    return (Choice(falcon, FALCON), Choice(eight, EIGHT_EXPERTS), Choice(usual))


def _very_low(name: str, number: int, base: str, richer: str, projection: str | None, embedding: str) -> FileType:
    mix = {
        "attn_v": (Choice("Q4_K", GROUPED | FOUR_EXPERTS), Choice(richer)),
        "attn_k": (Choice("Q4_K", EIGHT_EXPERTS),),
        "attn_output": (Choice("Q5_K", EIGHT_EXPERTS), Choice(projection)),
        "ffn_down": (Choice(richer, first_part(8)),),
    }
    return FileType(name, number, base, mix, "Q5_K", embedding, very_low=True)


_Q5_K_IF_EIGHT: Final = {"attn_output": _projection(None)}
_GROUPED_VALUES: Final = {"attn_v": (Choice("Q4_K", GROUPED),)}
_IQ4: Final = _Q5_K_IF_EIGHT | {
    "attn_v": (Choice("Q5_K", GROUPED),),
    "ffn_down": (Choice("Q5_K", first_part(8) & NO_IMATRIX),),
}

FILE_TYPES: Final[tuple[FileType, ...]] = (
    FileType("Q1_0", 40, "Q1_0"),
    FileType("Q2_0", 41, "Q2_0", embedding="Q4_K"),
    FileType("Q4_0", 2, "Q4_0", {"ffn_down": (Choice("Q4_1", first_part(8) & IMATRIX),)}),
    FileType("Q4_1", 3, "Q4_1"),
    FileType("MXFP4_MOE", 38, "MXFP4", head="Q8_0"),
    FileType("Q5_0", 8, "Q5_0", {"ffn_down": (Choice("Q5_1", first_part(8) & IMATRIX),)}),
    FileType("Q5_1", 9, "Q5_1"),
    _very_low("IQ2_XXS", 19, "IQ2_XXS", "Q2_K", None, "Q2_K"),
    _very_low("IQ2_XS", 20, "IQ2_XS", "Q2_K", None, "Q2_K"),
    _very_low("IQ2_S", 28, "IQ2_XS", "IQ3_S", "IQ3_S", "IQ3_S"),
    _very_low("IQ2_M", 29, "IQ2_S", "IQ3_S", "IQ3_S", "IQ3_S"),
    _very_low("IQ1_S", 24, "IQ1_S", "Q2_K", "IQ2_XXS", "Q2_K"),
    _very_low("IQ1_M", 31, "IQ1_M", "Q2_K", "IQ2_XXS", "Q2_K"),
    FileType("TQ1_0", 36, "TQ1_0", embedding="Q4_K"),
    FileType("TQ2_0", 37, "TQ2_0", embedding="Q4_K"),
    FileType(
        "Q2_K",
        10,
        "Q2_K",
        {
            "attn_v": (Choice("Q4_K", GROUPED), Choice("Q3_K")),
            "attn_output": _projection("Q3_K"),
            "ffn_down": (Choice("Q3_K"),),
        },
    ),
    FileType("Q2_K_S", 21, "Q2_K", _GROUPED_VALUES | {"ffn_down": (Choice("Q4_K", first_part(8)),)}),
    FileType(
        "IQ3_XXS",
        23,
        "IQ3_XXS",
        {
            "attn_v": (Choice("Q4_K", GROUPED), Choice("IQ3_S", NO_IMATRIX)),
            "attn_k": (Choice("IQ2_S"),),
            "attn_q": (Choice("IQ2_S"),),
            "attn_output": _projection("IQ3_S"),
            "ffn_down": (Choice("Q4_K", first_part(8) & NO_IMATRIX), Choice("Q3_K", NO_IMATRIX)),
        },
        head="Q5_K",
        embedding="IQ3_S",
    ),
    FileType("IQ3_S", 26, "IQ3_S", _Q5_K_IF_EIGHT | _GROUPED_VALUES),
    FileType(
        "IQ3_M",
        27,
        "IQ3_S",
        {
            "attn_v": (Choice("Q4_K"),),
            "attn_output": _projection("Q4_K"),
            "ffn_down": (Choice("Q4_K", first_part(8)), Choice("Q4_K", OUTER & EIGHT_EXPERTS)),
        },
    ),
    FileType(
        "IQ3_XS",
        22,
        "IQ3_S",
        _Q5_K_IF_EIGHT
        | _GROUPED_VALUES
        | {
            "attn_k": (Choice("IQ3_XXS"),),
            "attn_q": (Choice("IQ3_XXS"),),
            "ffn_gate": (Choice("IQ3_XXS", INNER),),
            "ffn_up": (Choice("IQ3_XXS", INNER),),
        },
    ),
    FileType("Q3_K_S", 11, "Q3_K", _Q5_K_IF_EIGHT),
    FileType(
        "Q3_K_M",
        12,
        "Q3_K",
        {
            "attn_v": (Choice("Q5_K", first(2)), Choice("Q4_K")),
            "attn_output": _projection("Q4_K"),
            "ffn_down": (Choice("Q5_K", first_part(16)), Choice("Q4_K", NOT_FALCON), Choice("Q4_K", OUTER)),
        },
    ),
    FileType(
        "Q3_K_L",
        13,
        "Q3_K",
        {
            "attn_v": (Choice("Q5_K"),),
            "attn_output": _projection("Q5_K", falcon="Q4_K", eight=None),
            "ffn_down": (Choice("Q4_K", FALCON), Choice("Q5_K")),
        },
    ),
    FileType("IQ4_NL", 25, "IQ4_NL", _IQ4),
    FileType("IQ4_XS", 30, "IQ4_XS", _IQ4),
    FileType(
        "Q4_K_S",
        14,
        "Q4_K",
        _Q5_K_IF_EIGHT
        | {"attn_v": (Choice("Q5_K", first(4)),), "ffn_down": (Choice("Q5_K", first_part(8) & NOT_FALCON),)},
    ),
    FileType(
        "Q4_K_M",
        15,
        "Q4_K",
        _Q5_K_IF_EIGHT
        | {
            "attn_v": (Choice("Q6_K", OUTER),),
            "ffn_down": (
                Choice("Q6_K", first_part(16) & FALCON),
                Choice("Q5_K", OUTER & FALCON),
                Choice("Q6_K", OUTER & NOT_FALCON),
            ),
        },
    ),
    FileType("Q5_K_S", 16, "Q5_K"),
    FileType("Q5_K_M", 17, "Q5_K", {"attn_v": (Choice("Q6_K", OUTER),), "ffn_down": (Choice("Q6_K", OUTER),)}),
    FileType("Q6_K", 18, "Q6_K"),
    FileType("Q8_0", 7, "Q8_0"),
    FileType("F16", 1, "F16"),
    FileType("BF16", 32, "BF16"),
    FileType("F32", 0, "F32"),
    FileType("COPY", None, None),
)

ALIASES: Final = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_BY_NAME: Final = {kind.name: kind for kind in FILE_TYPES}
_BY_NUMBER: Final = {str(kind.number): kind for kind in FILE_TYPES if kind.number is not None}


def file_type(name: str) -> FileType:
    """The file type of this name, alias or number; upper and lower case are the same.

    Raises:
        UnknownNameError: there is none; the message offers near ones.
    """
    asked = name.upper()
    found = _BY_NAME.get(ALIASES.get(asked, asked)) or _BY_NUMBER.get(asked)
    if found is None:
        raise unknown_name("file type", asked, [*_BY_NAME, *ALIASES])
    return found
