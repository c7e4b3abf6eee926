"""A Hugging Face folder as the GGUF that llama.cpp's converter would make of it (spec/gguf_models.md, sections 5 to 8).

Nothing is converted before it is asked for: metadata is read from the folder's JSON files, tensors when they are used.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from refquant.checkpoints import open as open_checkpoint
from refquant.checkpoints.gguf_values import Value, f32, i32, string, u32
from refquant.conversion.hugging_face_keys import Facts, early_parameters, hyper_parameters
from refquant.conversion.hugging_face_tensors import FILE_TYPES, ConvertedTensor, converted, guess_type, rope_tensors
from refquant.conversion.lost import what_is_lost
from refquant.conversion.model_name import parse_name, size_label, titled
from refquant.errors import CheckpointError, ModelError, RefquantError, unknown_name
from refquant.models.architectures import ARCHITECTURES
from refquant.models.config import parse_config, read_config
from refquant.models.gguf_architectures import GGUF_ARCHITECTURES
from refquant.models.weights import Names, bind, find_names
