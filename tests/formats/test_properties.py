"""Every format, every property it guarantees, inputs drawn from bit patterns."""

import pytest
from hypothesis import given

from refquant import formats, get_format
from refquant.conformance.guarantees import exceptions
from refquant.conformance.properties import PROPERTIES

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
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("statement", PROPERTIES, ids=lambda p: p.name)
def test_property(statement, scheme):
    fmt = get_format(scheme)
    if not statement.holds_for(fmt):
        pytest.skip(f"{fmt}: {exceptions(fmt)[statement.name]}")

    @given(statement.draw(fmt))
    def check(drawn):
        statement.check(fmt, drawn)

    check()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_exception_names_a_property(scheme):
    assert set(exceptions(get_format(scheme))) <= {p.name for p in PROPERTIES}
