"""What a conversion will write, tensor by tensor, before any data is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from refquant.arrays import Shape
from refquant.checkpoints.ggml_types import BY_NAME
from refquant.conversion.file_types import FileType, file_type
from refquant.conversion.metadata import overridden
from refquant.conversion.model_facts import ModelFacts
from refquant.conversion.options import Options
from refquant.conversion.order import output_order
from refquant.conversion.pruning import prune
from refquant.conversion.roles import EMBEDDING, OUTPUT, role_of, why_kept
from refquant.conversion.rules import FLOATS, Chooser, Chosen, fallback, needs_imatrix
from refquant.conversion.source import Source, SourceTensor
from refquant.errors import RefquantError

_PER_LAYER_EMBEDDING: Final = "per_layer_token_embd.weight"


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output.

    Attributes:
        name: in the output.
        source: its name in the input, by which an importance matrix knows it.
        shape: in C order.
        old: its type in the input ("F16").
        new: its type in the output ("Q4_K").
        why: the rule that chose the type, or why the old one stays.
        instead_of: the type that the rule chose, where its blocks do not divide the rows.
        needs_imatrix: whether it is refused without an importance matrix of its own.
    """

    name: str
    source: str
    shape: Shape
    old: str
    new: str
    why: str
    instead_of: str | None = None
    needs_imatrix: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def changes(self) -> bool:
        """Whether the data is converted, and not copied."""
        return self.old != self.new

    @property
    def old_nbytes(self) -> int:
        """Bytes in the input."""
        return self._nbytes(self.old)

    @property
    def nbytes(self) -> int:
        """Bytes in the output."""
        return self._nbytes(self.new)

    def _nbytes(self, kind: str) -> int:
        return self.size // BY_NAME[kind].block_size * BY_NAME[kind].block_bytes


@dataclass(frozen=True)
class Plan:
    """A conversion, decided.

    Attributes:
        file_type: what was asked for.
        model: the facts that the rules looked at.
        tensors: in the order of the output.
        blocks: the blocks left, where some are pruned.
    """

    file_type: FileType
    model: ModelFacts
    tensors: tuple[PlannedTensor, ...]
    blocks: int | None = None

    @property
    def fallbacks(self) -> tuple[PlannedTensor, ...]:
        """The tensors whose rows do not hold whole blocks of the type that the rule chose."""
        return tuple(tensor for tensor in self.tensors if tensor.instead_of)

    @property
    def needing_imatrix(self) -> tuple[PlannedTensor, ...]:
        """The tensors that are refused without an importance matrix."""
        return tuple(tensor for tensor in self.tensors if tensor.needs_imatrix)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the output."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def old_nbytes(self) -> int:
        """Bytes of the same tensors in the input."""
        return sum(tensor.old_nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all tensors over their weights; nan without weights."""
        return self.nbytes * 8 / self.size if self.size else math.nan


def plan(
    source: Source,
    file_type_name: str,
    options: Options | None = None,
    *,
    has_imatrix: bool = False,
    keep_order: bool = False,
) -> Plan:
    """Decide the type of every tensor; no data is read.

    Args:
        source: an opened GGUF, or a folder seen as one.
        file_type_name: "Q4_K_M", an alias or a number.
        options: llama-quantize's; none given: its defaults.
        has_imatrix: whether there will be an importance matrix, on which some mixes depend.
        keep_order: the tensors stay in the order of the input, as for the parts of a split model. Otherwise blocks
            ascend, and names within them.

    Raises:
        UnknownNameError: no such file type.
        RefquantError: metadata that a rule needs is missing; a type that no block of a row can have.
    """
    kind, options = file_type(file_type_name), options or Options()
    if options.tensor_types and kind.base in (None, *FLOATS):
        raise RefquantError(f"tensor types given for {kind.name}, which leaves no type to choose: leave them out")
    metadata = overridden(source.typed_metadata, options.overrides)
    model = ModelFacts.from_metadata({key: value.value for key, value in metadata.items()})
    ascending = sorted(source.tensors, key=output_order)
    renamed, blocks = prune(ascending, options.prune_layers)
    kept = [name for name in (source.tensors if keep_order else ascending) if name in renamed]
    planner = _Planner(kind, model, options, has_imatrix, list(renamed.values()))
    tensors = tuple(planner.planned(source.tensors[name], renamed[name]) for name in kept)
    if not tensors:
        raise RefquantError("the model has no tensors left; there is nothing to write")
    return Plan(kind, model, tensors, blocks)


class _Planner:
    """Puts the options before the rules, tensor after tensor."""

    def __init__(
        self, kind: FileType, model: ModelFacts, options: Options, has_imatrix: bool, names: Sequence[str]
    ) -> None:
        self._kind, self._model, self._options = kind, model, options
        self._chooser = None
        if kind.base not in (None, *FLOATS):
            self._chooser = Chooser(kind, model, has_imatrix, list(names), options.output_tensor_type)

    def planned(self, tensor: SourceTensor, name: str) -> PlannedTensor:
        """The tensor under its new name."""
        kept = self._why_kept(name, tensor.shape)
        if kept:
            return PlannedTensor(name, tensor.name, tensor.shape, tensor.dtype, tensor.dtype, kept)
        given = self._given(name)
        if given:
            self._check_rows(name, tensor.shape, given.type)
            chosen, new = given, given.type
        elif self._chooser is None:
            assert self._kind.base is not None
            chosen, new = Chosen(self._kind.base, self._kind.name), self._kind.base
        else:
            chosen = self._chosen(self._chooser, name, tensor.shape)
            new = fallback(name, chosen.type, tensor.shape)
            if new != chosen.type and not self._options.allow_fallback:
                self._check_rows(name, tensor.shape, chosen.type)
        return PlannedTensor(
            name,
            tensor.name,
            tensor.shape,
            tensor.dtype,
            new,
            chosen.why,
            chosen.type if new != chosen.type else None,
            new != tensor.dtype and needs_imatrix(name, new, self._kind),
        )

    def _why_kept(self, name: str, shape: Shape) -> str | None:
        if self._kind.base is None:
            return "COPY"
        if self._options.leave_output_tensor and name == "output.weight":
            return "the output matrix, to be left as it is"
        return why_kept(name, shape, self._model.architecture)

    def _given(self, name: str) -> Chosen | None:
        """The type that an option gives to embedding or output, before anything else is asked."""
        role, options = role_of(name), self._options
        # The table of every layer's embeddings is large and may be named on its own.
        named = name == _PER_LAYER_EMBEDDING and self._rule_type(name) is not None
        if role == EMBEDDING and options.token_embedding_type and not named:
            return Chosen(options.token_embedding_type, "the token embedding, whose type was given")
        if role == OUTPUT and options.output_tensor_type:
            return Chosen(options.output_tensor_type, "the output matrix, whose type was given")
        return None

    def _chosen(self, chooser: Chooser, name: str, shape: Shape) -> Chosen:
        rule = self._rule_type(name)
        if rule is not None:
            return rule
        if self._options.pure:
            assert self._kind.base is not None
            return Chosen(self._kind.base, "pure")
        return chooser.choose(name, shape)

    def _rule_type(self, name: str) -> Chosen | None:
        for rule in self._options.tensor_types:
            if rule.matches(name):
                return Chosen(rule.type, f"the name matches {rule.pattern!r}")
        return None

    def _check_rows(self, name: str, shape: Shape, kind: str) -> None:
        size = BY_NAME[kind].block_size
        if shape[-1] % size:
            raise RefquantError(
                f"tensor {name!r}: rows of {shape[-1]} weights, which blocks of {size} ({kind}) do not divide; "
                "give it another type with --tensor-type, --output-tensor-type or --token-embedding-type"
                + ("" if self._options.allow_fallback else ", or allow fallbacks")
            )
