"""Formats by name, and schemes: a format with its options as one short string (`int4-g128-asym`).

A scheme is the format's name and then its options, joined by `-`, in any order. Each format declares in
`Format.options` how its fields are written; parsing, printing and suggestions all come from those literals.
"""

import dataclasses
import re

from refquant.errors import RefquantError, UnknownNameError, unknown_name
from refquant.formats.base import Format, Option

_FORMATS: dict[str, Format] = {}


def register(*formats: Format) -> None:
    """Make formats known by name, with their defaults."""
    for fmt in formats:
        _FORMATS[fmt.name] = fmt


def formats() -> list[str]:
    """Every format name, sorted."""
    return sorted(_FORMATS)


def get_format(scheme: str | Format, **options: object) -> Format:
    """The format that a scheme names.

    Args:
        scheme: a name with options (`"int4-g128-asym"`), or a Format.
        **options: fields to set beside those in the scheme (`group_size=128`).

    Returns:
        A frozen Format; `str()` of it is the canonical scheme, which spells out block sizes that a short form such
        as `nf4` implies.

    Raises:
        UnknownNameError: no such format or option; the message offers near ones.
        RefquantError: an option given twice, or a value that the format does not take.
    """
    fmt = scheme if isinstance(scheme, Format) else _parse(scheme)
    if not options:
        return fmt
    known = {option.field for option in fmt.options}
    for name in options:
        if name not in known:
            raise unknown_name(f"option of {fmt.name}", name, known)
    return dataclasses.replace(fmt, **options)


def _parse(scheme: str) -> Format:
    # The longest name first, since one may start another: int8-dynamic is not int8 with an option.
    for name in sorted(_FORMATS, key=len, reverse=True):
        if scheme == name or scheme.startswith(name + "-"):
            words = scheme[len(name) + 1 :].split("-") if scheme != name else []
            return _with_options(_FORMATS[name], words, scheme)
    name, dash, rest = scheme.partition("-")
    try:
        raise unknown_name("format", name, _FORMATS)
    except UnknownNameError as error:
        raise UnknownNameError(f"scheme {scheme!r}: {error}" if dash or rest else str(error)) from None


def _with_options(fmt: Format, words: list[str], scheme: str) -> Format:
    values: dict[str, object] = {}
    for word in words:
        option = next((o for o in fmt.options if _pattern(o).fullmatch(word)), None)
        if option is None:
            error = unknown_name(f"option of {fmt.name}", word, [o.text for o in fmt.options] or ["none"])
            raise UnknownNameError(f"scheme {scheme!r}: {error} ('#' stands for a number)")
        if option.field in values:
            raise RefquantError(f"scheme {scheme!r}: {option.field} is given twice, the second time by {word!r}")
        values[option.field] = _number(word[1:]) if "#" in option.text else option.value
    return dataclasses.replace(fmt, **values)


def _pattern(option: Option) -> re.Pattern[str]:
    return re.compile(re.escape(option.text).replace(r"\#", r"\d+(\.\d+)?"))


def _number(text: str) -> int | float:
    return float(text) if "." in text else int(text)
