"""The tokenizer files of a Hugging Face folder as plain JSON, each checked to be an object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from refquant.errors import CheckpointError, ModelError
from refquant.models.tokenizer import read_library


@dataclass(frozen=True, eq=False)
class TokenizerFolder:
    """A folder with tokenizer files; a file that is not there is None.

    Attributes:
        path: the folder.
    """

    path: Path

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json, with what `text_config` says on top."""
        document = self.document("config.json") or {}
        inner = document.get("text_config")
        return {**document, **inner} if isinstance(inner, dict) else document

    @cached_property
    def tokenizer(self) -> dict[str, Any] | None:
        """tokenizer.json."""
        return self.document("tokenizer.json")

    @cached_property
    def tokenizer_config(self) -> dict[str, Any] | None:
        """tokenizer_config.json."""
        return self.document("tokenizer_config.json")

    @cached_property
    def library(self) -> tokenizers.Tokenizer:
        """tokenizer.json as the `tokenizers` library runs it, with the tokens that have a role as special ones.

        Raises:
            ModelError: there is none.
            CheckpointError: the library does not take it.
        """
        path = self.path / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{self.path}: no tokenizer.json and no tokenizer.model; save the tokenizer beside the model"
            )
        library = read_library(path)
        declared = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
        library.add_special_tokens([name for name in self.special_names() if name not in declared])
        return library

    def has(self, name: str) -> bool:
        """Whether the folder has a file."""
        return (self.path / name).is_file()

    def document(self, name: str) -> dict[str, Any] | None:
        """A JSON object.

        Raises:
            CheckpointError: the file is no JSON, or no object.
        """
        path = self.path / name
        if not path.is_file():
            return None
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not JSON: {error}") from None
        if not isinstance(document, dict):
            raise CheckpointError(f"{path}: a JSON {type(document).__name__} given; it must be an object")
        return document

    def added_tokens(self) -> list[dict[str, Any]]:
        """The added tokens of tokenizer.json, each with `id` and `content`.

        Raises:
            CheckpointError: an entry without them.
        """
        found = (self.tokenizer or {}).get("added_tokens") or []
        for entry in found:
            if (
                not isinstance(entry, dict)
                or not isinstance(entry.get("id"), int)
                or not isinstance(entry.get("content"), str)
            ):
                raise CheckpointError(
                    f"{self.path / 'tokenizer.json'}: added token {str(entry)[:80]}: no id or content"
                )
        return list(found)

    def decoder_tokens(self) -> dict[int, dict[str, Any]]:
        """The added tokens of tokenizer_config.json by id.

        Raises:
            CheckpointError: an id that is no integer, or an entry without content.
        """
        found = (self.tokenizer_config or {}).get("added_tokens_decoder") or {}
        try:
            tokens = {int(i): entry for i, entry in found.items()}
            if all(i >= 0 and isinstance(entry["content"], str) for i, entry in tokens.items()):
                return tokens
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise CheckpointError(
            f"{self.path / 'tokenizer_config.json'}: added_tokens_decoder: no id or content in an entry"
        )

    def special_names(self) -> list[str]:
        """The tokens that have a role, by tokenizer_config.json and special_tokens_map.json; each once."""
        given: list[object] = []
        config, named = self.tokenizer_config or {}, self.document("special_tokens_map.json") or {}
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            given.append(config.get(f"{role}_token") or named.get(f"{role}_token"))
        for document in (config, named):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                more = document.get(key) or []
                given += more.values() if isinstance(more, dict) else more
        return list(dict.fromkeys(name for entry in given for name in [_content(entry)] if name))


def _content(entry: object) -> str | None:
    found = entry.get("content") if isinstance(entry, dict) else entry
    return found if isinstance(found, str) else None
