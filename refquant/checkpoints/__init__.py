"""Bounded readers of checkpoint files."""
