"""Which format gives which guarantee: the exceptions, each with the reason that its page in spec/ gives.

Every format gives every property of `properties.PROPERTIES` that it is not excepted from here.
"""

from functools import singledispatch

from refquant.formats.base import Format
from refquant.formats.integer import Integer


@singledispatch
def exceptions(fmt: Format) -> dict[str, str]:
    """Names of the properties that the format does not give, with the reason."""
    return {}


@exceptions.register
def _(fmt: Integer) -> dict[str, str]:
    without: dict[str, str] = {}
    if not fmt.symmetric:
        without["quantizing_what_was_decoded_gives_the_same_codes"] = (
            "the ends of the range round apart: 2^b − 2 steps may remain of 2^b − 1, and the next scale is smaller"
        )
        without["negating_the_input_negates_the_output"] = (
            "ties of w / s and of the zero point round to even, not oddly"
        )
    if fmt.group_size is None:
        without["rows_quantized_alone_give_what_they_give_together"] = "one scale serves the whole tensor"
    return without


def guarantees(fmt: Format, name: str) -> bool:
    """Whether the format gives the property of that name."""
    return name not in exceptions(fmt)
