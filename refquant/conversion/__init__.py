"""Making GGUF files: which type each tensor gets, and the conversion itself (spec/file_types.md)."""

from refquant.conversion.convert import convert
from refquant.conversion.file_types import FILE_TYPES, FileType, file_type
from refquant.conversion.metadata import ImatrixSource
from refquant.conversion.options import Options
from refquant.conversion.overrides import Override
from refquant.conversion.patterns import TensorTypeRule
from refquant.conversion.plan import Plan, PlannedTensor, plan
from refquant.conversion.source import Source, lost_from, open_source

__all__ = [
    "convert",
    "plan",
    "Plan",
    "PlannedTensor",
    "Options",
    "Override",
    "TensorTypeRule",
    "FileType",
    "FILE_TYPES",
    "file_type",
    "ImatrixSource",
    "Source",
    "lost_from",
    "open_source",
]
