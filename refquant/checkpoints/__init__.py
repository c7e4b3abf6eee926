"""Bounded readers of checkpoint files: memory-mapped, and checked before anything is believed."""

from refquant.checkpoints.checkpoint import Checkpoint, CheckpointTensor, UnknownTensorError
from refquant.checkpoints.opening import open  # noqa: A004  # the design's public name

__all__ = ["open", "Checkpoint", "CheckpointTensor", "UnknownTensorError"]
