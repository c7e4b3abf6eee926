"""`load_model`: a Hugging Face folder to a Model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from refquant.checkpoints import open as open_checkpoint
from refquant.errors import CheckpointError, ModelError
from refquant.models.architectures import ARCHITECTURES
from refquant.models.config import read_config
from refquant.models.model import Model
from refquant.models.weights import bind, find_names

if TYPE_CHECKING:
    from refquant.models.tokenizer import Tokenizer


def load_model(path: str | os.PathLike[str]) -> Model:
    """Open a model: `config.json`, safetensors weights and, where there is one, `tokenizer.json`.

    Args:
        path: a Hugging Face folder. Weights stay in the file, memory-mapped, and are read when they are used.

    Returns:
        A Model; its `tokenizer` is None where the folder has no tokenizer.json.

    Raises:
        ModelError: an architecture or configuration that is not supported, or a tensor that is missing, of another
            shape than the configuration says, or left unused; the message names it.
        CheckpointError: not a folder with a config.json, or broken weights.
        OSError: a file cannot be read.

    Source: spec/forward.md.
    """
    folder = Path(path)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"{folder}: no config.json there; a model is a Hugging Face folder with one")
    config = read_config(config_path)
    stored = open_checkpoint(folder)
    try:
        names = find_names(ARCHITECTURES[config.architecture], config, stored)
        weights = bind(names, stored)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    return Model(path=folder, config=config, tokenizer=_tokenizer(folder), weights=weights, names=names)


def _tokenizer(folder: Path) -> "Tokenizer | None":
    if not (folder / "tokenizer.json").is_file():
        return None
    from refquant.models.tokenizer import load_tokenizer

    return load_tokenizer(folder)
