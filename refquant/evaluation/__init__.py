"""What a quantization costs: perplexity, divergence and the benchmark table."""
