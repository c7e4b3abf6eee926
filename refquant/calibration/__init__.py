"""What a text shows about a model's weights: importance matrices."""

from refquant.calibration.importance import importance_matrix

__all__ = ["importance_matrix"]
