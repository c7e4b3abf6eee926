"""Models: configuration, tokenizer, the forward pass and generation."""

from refquant.models.loading import load_model

__all__ = ["load_model"]
