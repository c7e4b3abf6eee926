"""Code books as data: one file each, float32 bit patterns in hexadecimal, checked against SHA256SUMS when loaded."""

from functools import cache
from pathlib import Path

import numpy as np

from refquant.arrays import Float32
from refquant.errors import RefquantError

_FOLDER = Path(__file__).parent


@cache
def load_table(name: str) -> Float32:
    """The values of the code book `name` by code, read once and read-only.

    Raises:
        RefquantError: the file is not the one that SHA256SUMS names: the installation is damaged.
    """
    import hashlib  # here, because it loads OpenSSL, which `import refquant` has no need of

    raw = (_FOLDER / f"{name}.txt").read_bytes()
    if f"{hashlib.sha256(raw).hexdigest()}  {name}.txt" not in (_FOLDER / "SHA256SUMS").read_text().splitlines():
        raise RefquantError(f"{_FOLDER / name}.txt is not what SHA256SUMS says it is: install refquant again")
    lines = [line for line in raw.decode("ascii").splitlines() if not line.startswith("#")]
    table = np.array([int(word, 16) for line in lines for word in line.split()], np.uint32).view(np.float32)
    table.flags.writeable = False
    return table
