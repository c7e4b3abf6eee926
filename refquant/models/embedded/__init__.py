"""The embedded model: what refquant runs when no model is named.

stories260K is a Llama of 260 thousand parameters trained on TinyStories, made into a Hugging Face folder by
tools/convert_llama2c.py. The text is the first twelve stories of the validation split, which it was not trained on.
Each folder holds its licence.
"""

from pathlib import Path

_HERE = Path(__file__).parent


def path() -> Path:
    """The model: a Hugging Face folder with config.json, model.safetensors and tokenizer.json."""
    return _HERE / "stories260K"


def text_path() -> Path:
    """The text: UTF-8 stories, a line `<|endoftext|>` between each two."""
    return _HERE / "tinystories" / "valid-excerpt.txt"
