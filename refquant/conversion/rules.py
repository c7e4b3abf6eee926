"""The type that a file type gives each tensor (spec/file_types.md, sections 4 and 5)."""

from collections import Counter
from typing import Final, NamedTuple

from refquant.arrays import Shape
from refquant.checkpoints.ggml_types import BY_NAME
from refquant.checkpoints.text import quoted
from refquant.conversion.file_types import FileType
from refquant.conversion.model_facts import ModelFacts
from refquant.conversion.order import block_number
from refquant.conversion.places import Place
from refquant.conversion.roles import EMBEDDING, OUTPUT, role_of
from refquant.errors import RefquantError

FLOATS: Final = ("F32", "F16", "BF16")
_FEED_FORWARD: Final = ("ffn_up", "ffn_gate", "ffn_down")

# What a type becomes where its blocks do not divide the rows. Types of blocks of 32 become F16.
_FALLBACKS: Final = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
_WITHOUT_SMALLER_BLOCKS: Final = 32
_NEEDING_IMATRIX: Final = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
_KEPT_AT_Q8_0: Final = {"glm5-next": ("attn_q_a", "attn_q_b", "nextn.eh_proj")}


class Chosen(NamedTuple):
    """A tensor's type, and the rule that chose it in words."""

    type: str
    why: str


class Chooser:
    """Chooses tensor after tensor, in the order of the output: some rules count the tensors that came before.

    Args:
        file_type: one whose base is a quantized type.
        model: the facts of the model.
        has_imatrix: whether an importance matrix is given, for whatever tensor.
        names: of all tensors of the output.
        output_type: a type for the output matrix, in place of the rule's.
    """

    def __init__(
        self,
        file_type: FileType,
        model: ModelFacts,
        has_imatrix: bool,
        names: list[str],
        output_type: str | None = None,
    ) -> None:
        assert file_type.base is not None
        self._kind, self._model, self._has_imatrix = file_type, model, has_imatrix
        self._base = Chosen(file_type.base, f"the base of {file_type.name}")
        self._output_type = output_type
        roles = Counter(map(role_of, names))
        self._tied = not roles[OUTPUT]
        self._values = roles["attn_v"]
        self._seen: Counter[str] = Counter()

    def choose(self, name: str, shape: Shape) -> Chosen:
        """The type of a tensor that may be quantized, before it is known whether its rows hold whole blocks."""
        role = role_of(name)
        if any(part in name for part in _KEPT_AT_Q8_0.get(self._model.architecture, ())):
            return Chosen("Q8_0", f"never below Q8_0 in {self._model.architecture}")
        if role == OUTPUT or (role == EMBEDDING and self._tied):
            return self._head("the output matrix" if role == OUTPUT else "also the output matrix", shape)
        if self._kind.name == "MXFP4_MOE":
            return self._experts_alone(role, shape)
        if role == EMBEDDING:
            return Chosen(self._kind.embedding, "the token embedding") if self._kind.embedding else self._base
        return self._mixed(role, self._place(role, name))

    def _head(self, what: str, shape: Shape) -> Chosen:
        kind, base = self._kind, self._base.type
        if self._output_type is not None:
            return Chosen(self._output_type, f"{what}, whose type was given")
        if self._model.architecture == "falcon":
            return Chosen("Q8_0", f"{what}, falcon")
        if kind.head != "Q8_0" and shape[-1] % BY_NAME[base].block_size:
            return Chosen("Q8_0", f"{what}, whose rows {base} does not divide")
        return Chosen("Q8_0" if base == "Q8_0" else kind.head, what)

    def _experts_alone(self, role: str, shape: Shape) -> Chosen:
        stacked = len(shape) > 2 and shape[-3] > 1
        if stacked and (self._model.architecture != "bailingmoe3" or role in _FEED_FORWARD):
            return Chosen(self._base.type, "experts")
        return Chosen("Q8_0", "not experts")

    def _mixed(self, role: str, place: Place) -> Chosen:
        for kind, when in self._kind.mix.get(role, ()):
            if when.holds(place):
                chosen = Chosen(kind, f"{role} {when.text}".rstrip()) if kind else self._base
                break
        else:
            chosen = self._base
        if self._kind.very_low:
            return chosen
        if role in ("attn_v", "attn_k") and place.model.experts == 8:
            return Chosen("Q8_0", f"{role} of a model with 8 experts")
        if role == "attn_v" and place.model.is_70b and chosen.type in ("Q3_K", "Q4_K"):
            return Chosen("Q5_K", "attn_v of a 70B model")
        return chosen

    def _place(self, role: str, name: str) -> Place:
        layer, layers = self._seen[role], self._values if role == "attn_v" else self._model.layers
        self._seen[role] += 1
        if role in _FEED_FORWARD and self._model.experts > 1 and not self._kind.very_low:
            layer = self._block_of(name)  # experts of one block are several tensors, or missing
        return Place(layer, layers, self._model, self._has_imatrix)

    def _block_of(self, name: str) -> int:
        found = block_number(name)
        if found is None or not 0 <= found < self._model.layers:
            raise RefquantError(
                f"tensor {quoted(name)}: a model with experts names the block of every ffn tensor, "
                f"blk.0. to blk.{self._model.layers - 1}."
            )
        return found


def fallback(name: str, kind: str, shape: Shape) -> str:
    """The type itself where its blocks divide the rows, else the one that takes its place.

    Raises:
        RefquantError: none is defined (Q1_0, NVFP4).
    """
    if shape[-1] % BY_NAME[kind].block_size == 0:
        return kind
    instead = _FALLBACKS.get(kind, kind)
    if instead == kind and BY_NAME[kind].block_size > _WITHOUT_SMALLER_BLOCKS:
        raise RefquantError(
            f"tensor {quoted(name)}: rows of {shape[-1]} weights, which blocks of {BY_NAME[kind].block_size} ({kind}) "
            "do not divide, and llama.cpp names no type to fall back to: give it one with --tensor-type"
        )
    return instead if shape[-1] % BY_NAME[instead].block_size == 0 else "F16"


def needs_imatrix(name: str, kind: str, file_type: FileType) -> bool:
    """Whether a tensor of this new type is refused without an importance matrix, as by llama-quantize."""
    if role_of(name) in (OUTPUT, EMBEDDING):
        return False
    return kind in _NEEDING_IMATRIX or (kind == "Q2_K" and file_type.name == "Q2_K_S")
