"""Memory that a forward pass uses again in every block, since fresh pages cost more than what is computed in them."""

import math

import numpy as np

from refquant.arrays import Float32, Shape


class Scratch:
    """Named float32 arrays: asking for a name again gives the same memory, with whatever is in it."""

    def __init__(self) -> None:
        self._buffers: dict[str, Float32] = {}

    def __call__(self, name: str, shape: Shape) -> Float32:
        """An uninitialised C-contiguous array of this shape; what the name was used for before is lost."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, np.float32)
        return buffer[:size].reshape(shape)
