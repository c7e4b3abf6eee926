"""refquant: the referee of LLM weight quantization.

The public names. Importing this loads NumPy and nothing heavier; what reads files, runs models or draws tables is
imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from refquant.errors import (
    CheckpointError,
    MissingExtraError,
    ModelError,
    NonFiniteError,
    PartsError,
    RefquantError,
    ScaleOverflowError,
    UnknownNameError,
)
from refquant.formats.base import Format, QuantizedTensor
from refquant.formats.registry import formats, get_format
from refquant.quantize import Error, dequantize, error, quantize

if TYPE_CHECKING:
    from refquant.checkpoints import open  # noqa: A004  # the design's public name
    from refquant.conversion import convert
    from refquant.evaluation import benchmark, divergence, perplexity
    from refquant.formats.llm_int8 import llm_int8_matmul
    from refquant.models import load_model

__version__ = "0.1.0"

_LAZY = {
    "open": "refquant.checkpoints",
    "convert": "refquant.conversion",
    "load_model": "refquant.models",
    "perplexity": "refquant.evaluation",
    "divergence": "refquant.evaluation",
    "benchmark": "refquant.evaluation",
    "llm_int8_matmul": "refquant.formats.llm_int8",
}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'refquant' has no attribute {name!r}")


__all__ = [
    "formats",
    "get_format",
    "quantize",
    "dequantize",
    "error",
    "llm_int8_matmul",
    "open",
    "convert",
    "load_model",
    "perplexity",
    "divergence",
    "benchmark",
    "Format",
    "QuantizedTensor",
    "Error",
    "RefquantError",
    "UnknownNameError",
    "NonFiniteError",
    "ScaleOverflowError",
    "PartsError",
    "CheckpointError",
    "ModelError",
    "MissingExtraError",
]
