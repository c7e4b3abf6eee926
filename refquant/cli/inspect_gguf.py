"""What `refquant inspect` says of a GGUF file beyond its tensors: typed metadata, and declared against actual."""

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from refquant.checkpoints.gguf import GgufCheckpoint
    from refquant.checkpoints.gguf_values import Value

FIRST: Final = 8  # elements of an array that are shown at most
WIDTH: Final = 80  # characters that they may take in the table, a longer first one apart


def document(checkpoint: "GgufCheckpoint") -> dict[str, object]:
    """The `gguf` and `metadata` of the JSON document."""
    from refquant.audit.file_type import declared_type

    header, declared = checkpoint.header, declared_type(checkpoint)
    return {
        "metadata": {key: _json_value(value) for key, value in checkpoint.typed_metadata.items()},
        "gguf": {
            "version": header.version,
            "byte_order": header.byte_order,
            "alignment": header.alignment,
            "file_type": None if declared is None else asdict(declared),
        },
    }


def metadata_rows(checkpoint: "GgufCheckpoint") -> list[list[str]]:
    """Key, type and value, for the table."""
    return [[key, value.type_name, _short(value)] for key, value in checkpoint.typed_metadata.items()]


def declaration(checkpoint: "GgufCheckpoint") -> list[str]:
    """Lines: what file it is, what type it declares, what it holds."""
    from refquant.audit.file_type import declared_type, in_words

    header = checkpoint.header
    return [
        f"GGUF version {header.version}, {header.byte_order}-endian, alignment {header.alignment}",
        *in_words(declared_type(checkpoint)),
    ]


def _json_value(value: "Value") -> dict[str, object]:
    if not value.is_array:
        return {"type": value.type_name, "value": _strict(value.value)}
    return {"type": value.type_name, "length": _length(value), "first": [_strict(v) for v in _first(value)]}


def _short(value: "Value") -> str:
    if not value.is_array:
        return value.value if isinstance(value.value, str) else _text(value.value)
    shown: list[str] = []
    for text in map(_text, _first(value)):
        if shown and sum(len(t) + 2 for t in shown) + len(text) > WIDTH:
            break
        shown.append(text)
    more = ["…"] if len(shown) < _length(value) else []
    return f"{_length(value):,}: {', '.join(shown + more)}" if shown else "0"


def _length(value: "Value") -> int:
    return len(value.value)  # type: ignore[arg-type]  # an array


def _first(value: "Value") -> Iterable[object]:
    elements = itertools.islice(value.value, FIRST)  # type: ignore[call-overload]  # an array
    return [element.item() if hasattr(element, "item") else element for element in elements]


def _text(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _strict(value: object) -> object:
    """JSON has no NaN and no infinities: these become strings."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
