"""What a user may ask of a conversion beyond the file type (spec/file_types.md, section 6)."""

from dataclasses import dataclass

from refquant.conversion.overrides import Override
from refquant.conversion.patterns import TensorTypeRule, writable_type
from refquant.errors import RefquantError


@dataclass(frozen=True)
class Options:
    """llama-quantize's options.

    Attributes:
        pure: every tensor that may be quantized gets the base, whatever the mix says.
        tensor_types: the first pattern that a name matches gives its type, in place of the mix.
        output_tensor_type: for `output.weight`, or for a token embedding that serves as one.
        token_embedding_type: for the token embedding.
        leave_output_tensor: `output.weight` keeps its type.
        allow_requantize: tensors that are quantized already may be quantized again.
        allow_fallback: a type whose blocks do not divide a tensor's rows may be replaced.
        prune_layers: blocks to leave out, the others being numbered anew.
        overrides: metadata to set.
    """

    pure: bool = False
    tensor_types: tuple[TensorTypeRule, ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    leave_output_tensor: bool = False
    allow_requantize: bool = False
    allow_fallback: bool = True
    prune_layers: tuple[int, ...] = ()
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        for kind in (self.output_tensor_type, self.token_embedding_type):
            if kind is not None and writable_type(kind) != kind:
                raise RefquantError(f"tensor type {kind!r} given; write {kind.upper()!r}")
        if any(layer < 0 for layer in self.prune_layers):
            raise RefquantError(f"prune_layers {self.prune_layers} given; layers are numbered from 0")
