"""A Hugging Face folder as the GGUF that llama.cpp's converter would make of it (spec/gguf_models.md, sections 5 to 8).

Metadata is read from the folder's JSON files; a tensor is made when it is asked for.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.gguf_values import Value, f32, i32, string, u32
from refquant.conversion.hugging_face_keys import Facts, early_parameters, hyper_parameters
from refquant.conversion.hugging_face_tensors import FILE_TYPES, ConvertedTensor, converted, guess_type, rope_tensors
from refquant.conversion.lost import tokens_lost, what_is_lost
from refquant.conversion.model_name import parse_name, size_label, titled
from refquant.conversion.tokenizer_metadata import tokenizer_metadata
from refquant.errors import CheckpointError, ModelError, unknown_name
from refquant.models.architectures import ARCHITECTURES
from refquant.models.config import parse_config
from refquant.models.gguf_architectures import GGUF_ARCHITECTURES, GGUF_NAMES
from refquant.models.gguf_config import read_config
from refquant.models.weights import Names, bind, find_names

_QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION of ggml.h
# What generation_config.json may say of sampling, as GGUF calls it and stores it, in the converter's order.
_SAMPLING: Final[dict[str, tuple[type, Callable[[object], Value]]]] = {
    "sequence": (str, string),
    "top_k": (int, i32),
    "top_p": (float, f32),
    "min_p": (float, f32),
    "xtc_probability": (float, f32),
    "xtc_threshold": (float, f32),
    "temp": (float, f32),
    "penalty_last_n": (int, i32),
    "penalty_repeat": (float, f32),
    "mirostat": (int, i32),
    "mirostat_tau": (float, f32),
    "mirostat_eta": (float, f32),
}
_THEIR_NAMES: Final = {"temp": "temperature", "penalty_repeat": "repetition_penalty"}


@dataclass(frozen=True, eq=False)
class HuggingFaceGguf:
    """A Hugging Face folder in GGUF's terms.

    Attributes:
        path: the folder.
        typed_metadata: values by key with their types, in the order that the converter writes them.
        tensors: by GGUF's names, in the order that the converter writes them.
        model_lost: in words, what the model computes and no key of its architecture says.
    """

    path: Path
    typed_metadata: Mapping[str, Value] = field(repr=False)
    tensors: Mapping[str, ConvertedTensor] = field(repr=False)
    model_lost: tuple[str, ...] = field(default=(), repr=False)

    @property
    def metadata(self) -> dict[str, object]:
        """The values alone."""
        return {key: value.value for key, value in self.typed_metadata.items()}

    @cached_property
    def lost(self) -> tuple[str, ...]:
        """In words, all that is lost: what no key says of the model, and a tokenizer that gives other ids."""
        return (*self.model_lost, *tokens_lost(self.path, self.metadata))


def as_gguf(path: str | os.PathLike[str], outtype: str = "auto", pre: str | None = None) -> HuggingFaceGguf:
    """See a Hugging Face folder as a GGUF.

    Args:
        path: a folder with config.json and safetensors weights; without tokenizer files there are no tokenizer keys.
        outtype: how matrices are stored: "f32", "f16", "bf16", or "auto", which is bf16 or f16, whichever the folder's
            first half-precision matrix has, and f16 where none has. Vectors and learned positions stay float32.
        pre: llama.cpp's name of the pre-tokenizer, where the ids of its probe text do not tell it.

    Returns:
        Metadata, and tensors that are converted one by one when they are asked for. A value beyond float16's range
        becomes an infinity in "f16".

    Raises:
        ModelError: an architecture, configuration or tokenizer that is not supported or has no form in GGUF; a tensor
            that is missing, of another shape than the configuration says, or unknown.
        CheckpointError: no config.json, or broken weights or tokenizer files.
        UnknownNameError: another outtype.

    Source: llama.cpp, convert_hf_to_gguf.py and conversion/*.py.
    """
    folder = Path(path)
    if outtype.upper() not in FILE_TYPES and outtype != "auto":
        raise unknown_name("outtype", outtype, ["auto", *(name.lower() for name in FILE_TYPES)])
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json there; a Hugging Face folder has one")
    raw = _document(folder / "config.json")
    stored = open_checkpoint(folder)
    try:
        config = parse_config(raw)
        names = find_names(ARCHITECTURES[config.architecture], config, stored)
        bind(names, stored)  # checks names and shapes
        name = GGUF_NAMES[config.architecture]
        kind = guess_type(stored) if outtype == "auto" else outtype.upper()
        facts = Facts(names.architecture, config, raw, FILE_TYPES[kind])
        head = f"{GGUF_ARCHITECTURES[name].head}.weight"
        target = Names(GGUF_ARCHITECTURES[name], config, "", head)
        rows = _tokens(folder) if name == "gemma3" else None
        divisors = [] if names.architecture.positions else rope_tensors(facts.rope, name, folder)
        tensors = {t.name: t for t in (*divisors, *converted(stored, names, target, kind, rows))}
        metadata = _metadata(folder, name, facts, tensors.values()) | _tokenizer(folder, name, pre)
        _, kept = read_config({key: value.value for key, value in metadata.items()}, tensors)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    return HuggingFaceGguf(folder, metadata, tensors, what_is_lost(config, kept))


def _metadata(folder: Path, name: str, facts: Facts, tensors: Iterable[ConvertedTensor]) -> dict[str, Value]:
    """Every key before the tokenizer's, in the converter's order."""
    return {
        "general.architecture": string(name),
        **early_parameters(name, facts),
        "general.type": string("model"),
        **_sampling(folder),
        **_general(folder, facts.raw, sum(tensor.size for tensor in tensors)),
        **hyper_parameters(name, facts),
        "general.quantization_version": u32(_QUANTIZATION_VERSION),
    }


def _sampling(folder: Path) -> dict[str, Value]:
    path = folder / "generation_config.json"
    given = _document(path) if path.is_file() else {}
    values: dict[str, Value] = {}
    for key, (kind, make) in _SAMPLING.items():
        theirs = _THEIR_NAMES.get(key, key)
        value = given.get(theirs)
        if isinstance(value, int) and kind is float:
            value = float(value)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise ModelError(f"{path}: {theirs} is {value!r}; it must be of type {kind.__name__}")
        if value is not None:
            values[f"general.sampling.{key}"] = make(value)
    return values


def _general(folder: Path, raw: Mapping[str, Any], parameters: int) -> dict[str, Value]:
    """What config.json's name for the model, and after it the folder's, says; a model card is not read."""
    sources = [folder.resolve().name]
    if isinstance(given := raw.get("_name_or_path"), str) and given and given.count("/") <= 1:
        sources.insert(0, given)  # with more slashes it is somebody's path
    parsed = [parse_name(source, parameters) for source in sources]

    def first(attribute: str) -> str | None:
        return next((value for name in parsed if (value := getattr(name, attribute)) is not None), None)

    organization = first("organization")
    words = {
        "name": titled(parsed[0].title),
        "version": first("version"),
        "organization": None if organization is None else titled(organization),
        "finetune": first("finetune"),
        "basename": first("basename"),
        "size_label": first("size_label") or size_label(parameters),
    }
    return {f"general.{key}": string(value) for key, value in words.items() if value is not None}


def _tokenizer(folder: Path, name: str, pre: str | None) -> dict[str, Value]:
    """The tokenizer's keys; none of a folder without a tokenizer, whose model takes ids alone."""
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    return tokenizer_metadata(folder, name, pre) if any((folder / file).is_file() for file in files) else {}


def _tokens(folder: Path) -> int | None:
    """How many tokens the tokenizer has, to which Gemma 3's embedding is cut; None where nothing tells."""
    path = folder / "tokenizer.json"
    if (folder / "tokenizer.model").is_file() or not path.is_file():
        return None
    tokenizer = _document(path)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens", [])
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise ModelError(f"{path}: model.vocab and added_tokens must list the tokens")
    return len(vocab) + len(added)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ModelError(f"{path}: a JSON {type(document).__name__} given; it must be an object")
    return document
