"""Models: configuration, tokenizer, the forward pass and generation."""
