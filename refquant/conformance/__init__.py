"""The conformance kit: strategies that draw hard inputs, and properties that every format must hold.

Needs the `conform` extra (Hypothesis). `strategies` draws, `definitions` decodes one element at a time straight from
spec/, `properties` states what a format guarantees and checks it, `bits` compares.
"""

from importlib.util import find_spec

from refquant.errors import MissingExtraError

if find_spec("hypothesis") is None:
    raise MissingExtraError("hypothesis", "conform", "the conformance kit")

from refquant.conformance import codebook as codebook  # importing a family registers its definitions and exceptions
from refquant.conformance import ggml as ggml
from refquant.conformance import llm_int8 as llm_int8
