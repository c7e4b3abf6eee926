"""The keys and values of tokens that a model has already seen."""

import numpy as np

from refquant.arrays import Float32
from refquant.errors import RefquantError
from refquant.models.config import ModelConfig


class Cache:
    """Keys and values of every layer, filled from the left as tokens come.

    Attributes:
        length: how many tokens fit.
        used: how many are in it; the next token's position.
    """

    def __init__(self, config: ModelConfig, batch: int, length: int) -> None:
        if batch < 1 or length < 1:
            raise RefquantError(f"cache: batch {batch} and length {length} given; both must be at least 1")
        lead = (config.num_layers, batch, config.num_kv_heads)
        self._keys = np.empty((*lead, config.head_dim, length), np.float32)
        self._values = np.empty((*lead, length, config.head_dim), np.float32)
        self.batch, self.length, self.used = batch, length, 0

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, filled or not."""
        return self._keys.nbytes + self._values.nbytes

    def put(self, layer: int, keys: Float32, values: Float32) -> tuple[Float32, Float32]:
        """Store one layer's new keys and values behind those in use, and return all so far.

        Args:
            layer: its index.
            keys: (batch, kv heads, head_dim, new tokens).
            values: (batch, kv heads, new tokens, head_dim).
        """
        stop = self.used + keys.shape[3]
        self._keys[layer, ..., self.used : stop] = keys
        self._values[layer, :, :, self.used : stop] = values
        return self._keys[layer, ..., :stop], self._values[layer, :, :, :stop]

    def check_room(self, batch: int, tokens: int) -> None:
        """Raise RefquantError unless this many new tokens fit."""
        if batch != self.batch:
            raise RefquantError(f"cache: made for a batch of {self.batch}, used with {batch}: make a new one")
        if self.used + tokens > self.length:
            raise RefquantError(
                f"cache: {tokens} tokens given after {self.used}; it was made for {self.length}: make a longer one"
            )
