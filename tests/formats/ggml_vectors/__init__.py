"""What ggml itself wrote for a few matrices, one JSON file a type; tests/peers/freeze_ggml.py makes them.

`weights` and `importance` are base64 of little-endian float32; `plain` and `weighted` are ggml's bytes without and with
the importance matrix, and null where ggml defines none. `inputs` names the file with the matrix, shared by types.
"""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refquant.arrays import Float32, UInt8

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Frozen:
    """One type's vectors: weights (rows, n), importance (n,), and ggml's bytes, (rows, row bytes)."""

    source: str
    weights: Float32
    importance: Float32
    plain: UInt8 | None
    weighted: UInt8 | None


def path(name: str) -> Path:
    return FOLDER / f"{name}.json"


def load(name: str) -> Frozen:
    found = json.loads(path(name).read_text(encoding="utf-8"))
    inputs = json.loads(path(found["inputs"]).read_text(encoding="utf-8"))
    weights = np.frombuffer(base64.b64decode(inputs["weights"]), "<f4").reshape(inputs["rows"], -1)
    importance = np.frombuffer(base64.b64decode(inputs["importance"]), "<f4")
    stored = {
        way: None
        if found[way] is None
        else np.frombuffer(base64.b64decode(found[way]), np.uint8).reshape(len(weights), -1)
        for way in ("plain", "weighted")
    }
    return Frozen(found["source"], weights, importance, **stored)
