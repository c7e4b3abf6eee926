"""`load_model`: a Hugging Face folder or a GGUF file to a Model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.gguf import GgufCheckpoint
from refquant.errors import CheckpointError, ModelError
from refquant.models.architectures import ARCHITECTURES
from refquant.models.config import read_config
from refquant.models.gguf_loading import load_gguf
from refquant.models.model import Model
from refquant.models.weights import bind, find_names

if TYPE_CHECKING:
    from refquant.models.tokenizer import Tokenizer


def load_model(path: str | os.PathLike[str]) -> Model:
    """Open a model: a Hugging Face folder or a GGUF file.

    Args:
        path: a folder with `config.json`, safetensors weights and, where there is one, `tokenizer.json`; or a GGUF
            file, of a split model any of its files. Weights stay in the file, memory-mapped and quantized as they
            are, and are widened when they are used.

    Returns:
        A Model; its `tokenizer` is None where the folder has no tokenizer.json or the file no vocabulary.

    Raises:
        ModelError: an architecture or configuration that is not supported, or a tensor that is missing, of another
            shape than the configuration says, or left unused; the message names it.
        CheckpointError: neither a folder with a config.json nor a GGUF file, or broken weights.
        OSError: a file cannot be read.

    Source: spec/forward.md, spec/gguf_models.md.
    """
    folder = Path(path)
    if folder.suffix == ".gguf" or folder.is_file():
        opened = open_checkpoint(folder)
        if isinstance(opened, GgufCheckpoint):
            return load_gguf(opened)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(
            f"{folder}: no config.json there; a model is a Hugging Face folder with one, or a GGUF file"
        )
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
