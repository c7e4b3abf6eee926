"""Every format, every property it guarantees, inputs drawn from bit patterns."""

import pytest
from hypothesis import given, settings

from refquant import formats, get_format
from refquant.conformance.guarantees import exceptions
from refquant.conformance.properties import PROPERTIES
from refquant.formats.ggml import GgmlFormat

SCHEMES = [
    *formats(),
    "int4-g32",
    "int4-g5-asym",
    "int3-g7",
    "int2-g3-asym-f16",
    "int5-row-asym-bf16",
    "int6-g16-f16",
    "int7-row",
    "int8-row-bf16",
    "int8-g128-asym-bf16",
    "int8-asym",
    "int2-g1",
    "nf4-b32",
    "nf4-b32-dq",
    "fp4-b32-dq",
    "fp4-b128",
    "int8-dynamic-b32",
]

GUARANTEED = [(p, scheme) for p in PROPERTIES for scheme in SCHEMES if p.holds_for(get_format(scheme))]


@pytest.mark.parametrize(("statement", "scheme"), GUARANTEED, ids=[f"{p.name}-{scheme}" for p, scheme in GUARANTEED])
def test_property(statement, scheme):
    fmt = get_format(scheme)
    examples = settings().max_examples
    if isinstance(fmt, GgmlFormat):  # ggml's frozen bytes and tests/peers hold the same code; a search takes a while
        examples = max(1, examples // 4)

    @settings(max_examples=examples)
    @given(statement.draw(fmt))
    def check(drawn):
        statement.check(fmt, drawn)

    check()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_exception_names_a_property(scheme):
    assert set(exceptions(get_format(scheme))) <= {p.name for p in PROPERTIES}
