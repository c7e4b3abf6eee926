"""Code books and grids as data: one file each, words in hexadecimal, checked against SHA256SUMS when loaded."""

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refquant.arrays import Float32
from refquant.errors import RefquantError

_FOLDER = Path(__file__).parent


@cache
def load_table(name: str) -> Float32:
    """The values of the code book `name` by code, read once and read-only.

    Raises:
        RefquantError: the file is not the one that SHA256SUMS names: the installation is damaged.
    """
    return load_words(name).view(np.float32)


def load_words(name: str) -> npt.NDArray[np.uint32]:
    """The words of the file `name` in their order, read-only.

    Raises:
        RefquantError: the file is not the one that SHA256SUMS names: the installation is damaged.
    """
    import hashlib  # here, because it loads OpenSSL, which `import refquant` has no need of

    raw = (_FOLDER / f"{name}.txt").read_bytes()
    if f"{hashlib.sha256(raw).hexdigest()}  {name}.txt" not in (_FOLDER / "SHA256SUMS").read_text().splitlines():
        raise RefquantError(f"{_FOLDER / name}.txt is not what SHA256SUMS says it is: install refquant again")
    lines = [line for line in raw.decode("ascii").splitlines() if not line.startswith("#")]
    words = np.array([int(word, 16) for line in lines for word in line.split()], np.uint32)
    words.flags.writeable = False
    return words
