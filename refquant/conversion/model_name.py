"""What a model's name says of it, as llama.cpp's converter reads names (spec/gguf_models.md, section 7).

`SmolLM2-135M-Instruct-v0.2`: base SmolLM2, size 135M, fine-tuned as Instruct, version v0.2.
"""

import re
from dataclasses import dataclass, field
from typing import Final

_VERSION: Final = re.compile(r"(v|iter)?\d+(\.\d+)*", re.IGNORECASE)
_STORAGE: Final = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(r"(A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl", re.IGNORECASE)
_TUNED: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_UNTITLED: Final = re.compile(r"v\d+(\.\d+)*|\d.*")
_UNITS: Final = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (0, 1e-3, "K"))


@dataclass
class _Part:
    """A word between two dashes, and what it may be: base, size, tuning, version, storage."""

    text: str
    kinds: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class ModelName:
    """The parts of a name; None where it has no such part.

    Attributes:
        title: the name itself.
        organization: what stands before a slash.
        basename: the words it begins with, if there are any others.
        finetune: how it was tuned.
        version: its version.
        size_label: its size, if that is near the number of parameters.
    """

    title: str
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def parse_name(name: str, parameters: int) -> ModelName:
    """Take a name apart.

    Args:
        name: `organization/model-name` or `model-name`; with a space in it, it is taken as a whole.
        parameters: of the model.

    Source: gguf-py, metadata.py (`get_model_id_components`).
    """
    if " " in name:
        return ModelName(name)
    organization, _, title = name.partition("/") if "/" in name else (None, "", name)
    parts = [_Part(word) for word in title.split("-") if word]
    for i, part in enumerate(parts):
        _classify(part, first=i == 0, parameters=parameters)
    if any("size" in part.kinds and re.search(r"\d", part.text) for part in parts):
        for part in parts:
            if part.text.isalpha():
                part.kinds.discard("size")
    _find_base(parts)
    base, size, tuned = (_joined(parts, kind) for kind in ("base", "size", "tuning"))
    version = "-".join(p.text for p in parts if "version" in p.kinds and "base" not in p.kinds) or None
    return ModelName(
        title=title,
        organization=None if organization is None or organization.startswith(".") else organization,  # not ./name
        basename=base if size or tuned or version else None,
        finetune=tuned,
        version=version,
        size_label=size,
    )


def titled(name: str) -> str:
    """Dashes as spaces, and words in lower case with a capital, but for versions and numbers."""
    words = name.strip().replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not _UNTITLED.fullmatch(w) else w for w in words)


def size_label(parameters: int) -> str:
    """A number of parameters in at least two digits: 135M, 1.2B. Source: gguf-py, utility.py."""
    scale, unit = next((scale, unit) for above, scale, unit in _UNITS if parameters > above or above == 0)
    scaled = parameters * scale
    decimals = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{decimals}f}{unit}"


def _classify(part: _Part, first: bool, parameters: int) -> None:
    if _VERSION.fullmatch(part.text):
        part.kinds.add("version")
    elif _STORAGE.fullmatch(part.text):
        part.kinds.add("storage")
        part.text = part.text.upper()
    elif not first and _SIZE.fullmatch(part.text):
        part.text = _normal_size(part.text)
        size = _size_in_words(part.text)
        if size is not None and parameters and abs(size - parameters) > 7 * parameters // 8:
            part.kinds.add("tuning")  # a length of context, more likely
            part.text = part.text[:-1] + part.text[-1].lower()
        else:
            part.kinds.add("size")
    elif not first and _TUNED.fullmatch(part.text):
        part.kinds.add("tuning")


def _normal_size(text: str) -> str:
    """7b1 and 7_1b as 7.1B."""
    text = text.replace("_", ".")
    if text[-1].isdecimal():
        text = f"{text[:-2]}.{text[-1]}{text[-2]}"
    number_before = len(text) > 1 and text[-2].isdecimal()
    return text[:-1] + text[-1].upper() if number_before and text[-1] in "kmbt" else text


def _size_in_words(text: str) -> float | None:
    """The number that a size stands for; None for `large` or `8x7B`."""
    try:
        return float(text[:-1]) * float(1000 ** " KMBT".find(text[-1]))
    except ValueError:
        return None


def _find_base(parts: list[_Part]) -> None:
    """The words that a name begins with, and versions among them, are its base; later words say how it was tuned."""
    at_start = True
    for part in parts:
        if at_start and (part.kinds == {"version"} or (not part.kinds and part.text[0].isalpha())):
            part.kinds.add("base")
        else:
            at_start = False
            part.kinds = part.kinds or {"tuning"}
    for part in reversed(parts):  # versions at the end are the model's own
        if "base" not in part.kinds or len(part.kinds) == 1:
            break
        part.kinds.remove("base")


def _joined(parts: list[_Part], kind: str) -> str | None:
    words = [part.text for part in parts if kind in part.kinds]
    return "-".join(dict.fromkeys(words) if kind == "size" else words) or None
