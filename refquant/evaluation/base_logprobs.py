"""Where the base's log-probabilities are kept, so that it runs once: memory up to a bound, a temporary file beyond."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from refquant.arrays import Float32
from refquant.errors import RefquantError

DEFAULT_MEMORY = 1 << 30  # bytes


@contextmanager
def logprob_store(tokens: int, vocab_size: int, memory: int = DEFAULT_MEMORY) -> Iterator[Float32]:
    """An array of float32 (tokens, vocabulary) to fill: in memory up to `memory` bytes, else mapped from a file.

    float32 and not 16 bits, so that a model beside itself diverges by exactly 0. The file has no name that outlives
    it where the system allows that, and is gone when the context ends or the process dies.

    Raises:
        RefquantError: the temporary folder has no room for the file.
    """
    nbytes = 4 * tokens * vocab_size
    if nbytes <= memory:
        yield np.empty((tokens, vocab_size), np.float32)
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise RefquantError(
            f"the base's log-probabilities, {tokens} tokens × {vocab_size} × 4 bytes = {nbytes / 1e9:.1f} GB, exceed "
            f"the memory they may take ({memory / 1e9:.1f} GB) and what {folder} has free ({free / 1e9:.1f} GB): "
            "score fewer tokens, allow more memory, or set TMPDIR to a larger disk"
        )
    with tempfile.TemporaryFile(prefix="refquant-") as file:
        if hasattr(os, "posix_fallocate"):  # a mapped page that finds the disk full later would kill the process
            os.posix_fallocate(file.fileno(), 0, nbytes)
        yield np.memmap(file, np.float32, "w+", shape=(tokens, vocab_size))
