"""Findings about a checkpoint: what it claims, held against what it holds."""
