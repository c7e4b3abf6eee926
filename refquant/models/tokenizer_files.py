"""What a Hugging Face folder says about its tokenizer beside tokenizer.json.

| file | what is read |
|---|---|
| tokenizer_config.json | `bos_token`, `eos_token`, `add_bos_token`, `chat_template`, other special tokens |
| special_tokens_map.json | the special tokens, where tokenizer_config.json names none |
| config.json, generation_config.json | `bos_token_id`, where no file names the token; `eos_token_id`, one or a list |
| chat_template.jinja | the chat template, over the one in tokenizer_config.json |

Every id at which any of the files says that a text ends is an end: chat models often name one in one file and another
in the next.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refquant.errors import CheckpointError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TokenizerSettings:
    """The settings beside tokenizer.json.

    Attributes:
        special_tokens: the special tokens by role (`bos_token`, `eos_token`, …).
        bos_id: the id of BOS where a file gives one as a number.
        eos_ids: the ids of EOS that files give as numbers.
        add_bos: whether a text starts with BOS; None where no file says so.
        chat_template: the default chat template; None where there is none.
    """

    special_tokens: Mapping[str, str]
    bos_id: int | None
    eos_ids: frozenset[int]
    add_bos: bool | None
    chat_template: str | None


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings of the tokenizer in a folder; a file that is not there says nothing.

    Raises:
        CheckpointError: a file is not a JSON object, or a value is of the wrong kind; the message names both.
        OSError: a file cannot be read.
    """
    tokenizer_config = _read(folder / "tokenizer_config.json")
    special_map = _read(folder / "special_tokens_map.json")
    documents = [_read(folder / name) for name in ("config.json", "generation_config.json")]
    special = {
        role: name
        for role in ROLES
        for name in [_name(tokenizer_config, role) or _name(special_map, role)]
        if name is not None
    }
    bos = [i for document in documents for i in _ids(document, "bos_token_id")]
    return TokenizerSettings(
        special_tokens=special,
        bos_id=bos[0] if bos else None,
        eos_ids=frozenset(i for document in documents for i in _ids(document, "eos_token_id")),
        add_bos=_add_bos(tokenizer_config),
        chat_template=_template_file(folder / "chat_template.jinja") or _template(tokenizer_config),
    )


@dataclass(frozen=True)
class _Document:
    path: Path
    values: Mapping[str, Any]

    def wrong(self, key: str, expected: str) -> CheckpointError:
        shown = repr(self.values[key])
        return CheckpointError(f"{self.path}: {key} is {shown[:100]}; expected {expected}")


def _read(path: Path) -> _Document:
    if not path.exists():
        return _Document(path, {})
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # also what is not Unicode, and integers of thousands of digits
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: a JSON {type(values).__name__} given; it must be an object")
    return _Document(path, values)


def _name(document: _Document, role: str) -> str | None:
    value = document.values.get(role)
    name = value.get("content") if isinstance(value, dict) else value
    if name is None or isinstance(name, str):
        return name or None
    raise document.wrong(role, "a token, or an object with its `content`")


def _ids(document: _Document, key: str) -> Iterator[int]:
    value = document.values.get(key)
    for i in value if isinstance(value, list) else [value]:
        if isinstance(i, int) and not isinstance(i, bool) and i >= 0:
            yield i
        elif i is not None:
            raise document.wrong(key, "a token id, a list of them, or null")


def _add_bos(document: _Document) -> bool | None:
    value = document.values.get("add_bos_token")
    if value is None or isinstance(value, bool):
        return value
    raise document.wrong("add_bos_token", "true or false")


def _template_file(path: Path) -> str | None:
    if not path.exists():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error}") from None


def _template(document: _Document) -> str | None:
    value = document.values.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    try:
        named = {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, KeyError):
        raise document.wrong("chat_template", "a template, or a list of objects with `name` and `template`") from None
    return named.get("default")
