"""Special tokens, their flags, and the chat template of a Hugging Face folder, as llama.cpp's converter finds them.

The rules are those of gguf-py's `SpecialVocab`: what a text begins and ends with is read from the post-processor of
tokenizer.json, the tokens by role from tokenizer_config.json and then from config.json (spec/tokenizer.md, section 7).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from refquant.checkpoints.gguf_values import Value, boolean, string, strings, u32
from refquant.conversion.tokenizer_files import TokenizerFolder
from refquant.errors import CheckpointError
from refquant.models.gguf_vocab import PREFIX, ROLES

_ROLES: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_FLAGS: Final = ("bos", "eos", "sep")
_TEMPLATE: Final = "tokenizer.chat_template"


@dataclass
class _Found:
    """What has been found so far; `config` is tokenizer_config.json as the post-processor completes it."""

    config: dict[str, Any] | None
    adds: dict[str, bool] = field(default_factory=dict)
    roles: tuple[str, ...] = _ROLES


def special_values(folder: TokenizerFolder, size: int | None) -> dict[str, Value]:
    """The metadata of special tokens, flags and chat templates, in the converter's order.

    Args:
        folder: the files.
        size: tokens in the vocabulary, beyond which an id is left out; None: every id is taken.

    Raises:
        CheckpointError: an id below zero.
    """
    config = folder.tokenizer_config
    found = _Found(None if config is None else dict(config))
    if folder.tokenizer:
        _read_post_processor(folder.tokenizer, found)
    ids = _ids(folder, found, size)
    values = {PREFIX + ROLES[role]: u32(i) for role, i in ids.items() if role in ROLES}
    values |= {f"{PREFIX}add_{role}_token": boolean(flag) for role, flag in found.adds.items() if role in _FLAGS}
    if found.config:
        values |= _template_values(_template(folder, found.config))
    return values | _normalizer_values((folder.tokenizer or {}).get("normalizer"))


def _read_post_processor(tokenizer: Mapping[str, Any], found: _Found) -> None:
    config = found.config or {}
    if found.config:
        for role, other in (("bos", "cls"), ("eos", "sep")):
            if not config.get(f"{role}_token") and config.get(f"{other}_token"):
                config[f"{role}_token"] = config[f"{other}_token"]
    names = {role: config.get(f"{role}_token") for role in ("bos", "cls", "eos", "sep")}
    processor = tokenizer.get("post_processor") or {}
    for step in processor.get("processors", [processor]):
        match step.get("type"):
            case "ByteLevel":
                found.adds.setdefault("bos", False)
                found.adds.setdefault("eos", False)
            case "RobertaProcessing":
                found.adds |= {"bos": True, "eos": True, "sep": True}
                for role, other in (("cls", "bos"), ("sep", "eos")):
                    if not names[role] and found.config:
                        config[f"{role}_token"] = names[role] = step.get(role, [names[other]])[0]
            case "TemplateProcessing":
                first, last = _read_single(step, names, found)
                _read_pair(step, first, last, names, found)


def _token(item: Mapping[str, Any]) -> str | None:
    """The special token that stands at a place of a template."""
    name: str | None = item.get("SpecialToken", {}).get("id")
    return name


def _read_single(step: Mapping[str, Any], names: dict[str, Any], found: _Found) -> tuple[str | None, str | None]:
    """What a template puts first and last, and what that says of BOS and EOS."""
    single = step.get("single", [])
    if len(single) <= 1:
        return None, None
    first, last = _token(single[0]), _token(single[-1])
    if first:
        if not found.config:
            names["bos"] = first
        elif first not in (names["bos"], names["cls"]):
            for role in ("bos", "cls"):
                if not names[role]:
                    found.config[f"{role}_token"] = names[role] = first
        found.adds["bos"] = first in (names["bos"], names["cls"])
    if last:
        if found.config and last != names["eos"]:  # what was EOS ends a turn
            spare = next((role for role in ("eot", "eom") if role not in found.roles), None)
            if spare:
                found.roles += (spare,)
                found.config[f"{spare}_token"] = names["eos"]
            found.config["eos_token"] = last
        names["eos"] = last
        found.adds["eos"] = True
    return first, last


def _read_pair(
    step: Mapping[str, Any], first: str | None, last: str | None, names: dict[str, Any], found: _Found
) -> None:
    """Whether a separator stands between two texts."""
    pair = step.get("pair", [])
    if not pair:
        return
    start = 1 if first and _token(pair[0]) == first else 0
    stop = len(pair) - 1 if last and _token(pair[-1]) == last else len(pair)
    pair = pair[start:stop]
    if not pair or (pair[0].get("Sequence", {}).get("id"), pair[-1].get("Sequence", {}).get("id")) != ("A", "B"):
        return
    between = pair[1:-1]
    if not between:
        return
    known = (names["sep"], names["eos"])
    adds = bool(_token(between[0])) and _token(between[0]) in known and not last
    if len(between) == 2 and _token(between[1]):
        adds |= _token(between[1]) in known
    found.adds["sep"] = adds
    if adds and not names["sep"] and found.config:
        found.config["sep_token"] = names["eos"]


def _ids(folder: TokenizerFolder, found: _Found, size: int | None) -> dict[str, int]:
    """Token ids by role, and the flags of tokenizer_config.json where the post-processor says nothing."""
    ids: dict[str, int] = {}

    def take(role: str, i: object, source: str) -> None:
        if not isinstance(i, int) or isinstance(i, bool):
            return
        if i < 0:
            raise CheckpointError(f"{folder.path / source}: {role}_token_id is {i}; an id is 0 or more")
        if size is None or i < size:
            ids.setdefault(role, i)

    config = found.config or {}
    added = folder.added_tokens()
    for role in found.roles if config else ():
        flag = config.get(f"add_{role}_token")
        if isinstance(flag, bool):
            found.adds.setdefault(role, flag)
        name = config.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        if isinstance(name, str):
            take(role, next((token["id"] for token in added if token["content"] == name), None), "tokenizer.json")
    document = folder.document("config.json") or {}
    inner = document.get("text_config") or {}
    for role in found.roles:
        key = f"{role}_token_id"
        take(role, inner.get(key) if document.get(key) is None else document[key], "config.json")
    return ids


def _template(folder: TokenizerFolder, config: Mapping[str, Any]) -> object:
    """The chat template, or a list of templates with names."""
    other: object = None
    if folder.has("chat_template.jinja"):
        other = _text(folder.path / "chat_template.jinja")
        more = sorted((folder.path / "additional_chat_templates").glob("*.jinja"))
        if more:
            named = [{"name": path.stem, "template": _text(path)} for path in more]
            other = [{"name": "default", "template": other}, *named]
    elif folder.has("chat_template.json"):
        other = (folder.document("chat_template.json") or {}).get("chat_template")
    return config.get("chat_template", other)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error}") from None


def _template_values(template: object) -> dict[str, Value]:
    if isinstance(template, str):
        return {_TEMPLATE: string(template)}
    values: dict[str, Value] = {}
    names = []
    default = None
    for choice in template if isinstance(template, list) else ():
        name = re.sub("[^A-Za-z0-9]", "_", str(choice.get("name", "")))
        text = choice.get("template")
        if name == "default" and isinstance(text, str):
            default = text
        elif name and isinstance(text, str):
            names.append(name)
            values[f"{_TEMPLATE}.{name}"] = string(text)
    if names:
        values["tokenizer.chat_templates"] = strings(list(dict.fromkeys(names)))
    return values if default is None else {**values, _TEMPLATE: string(default)}


def _normalizer_values(normalizer: object) -> dict[str, Value]:
    """The flags of a normalizer that changes case or accents."""
    flags: dict[str, object] = {}
    for step in _steps(normalizer):
        match step.get("type"):
            case "Lowercase":
                flags["lowercase"] = True
            case "StripAccents":
                flags["strip_accents"] = True
            case "BertNormalizer":
                flags |= {name: step[name] for name in ("lowercase", "strip_accents") if name in step}
    order = [name for name in ("lowercase", "strip_accents") if flags.get(name) is not None]
    return {f"{PREFIX}normalizer.{name}": boolean(flags[name]) for name in order}


def _steps(normalizer: object) -> Iterable[Mapping[str, Any]]:
    if isinstance(normalizer, dict):
        if normalizer.get("type") == "Sequence":
            for step in normalizer.get("normalizers") or ():
                yield from _steps(step)
        else:
            yield normalizer
