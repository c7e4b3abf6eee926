"""Schemes: parsed, printed back, and near ones offered for a misspelling."""

import itertools

import pytest

import refquant as rq
from refquant.formats.base import Format

INTEGERS = [
    "-".join([name, *(word for word in words if word)])
    for name, *words in itertools.product(
        [f"int{bits}" for bits in range(2, 9)], ["", "row", "g1", "g128"], ["", "asym"], ["", "f16", "bf16"]
    )
]


@pytest.mark.parametrize("scheme", INTEGERS)
def test_a_canonical_scheme_prints_back_the_same(scheme):
    fmt = rq.get_format(scheme)
    assert str(fmt) == scheme
    assert rq.get_format(str(fmt)) == fmt


def test_every_format_by_name_prints_a_scheme_that_parses_to_it():
    for name in rq.formats():
        fmt = rq.get_format(name)
        assert fmt.name == name
        assert rq.get_format(str(fmt)) == fmt
        assert str(rq.get_format(str(fmt))) == str(fmt)


def test_format_names_are_sorted():
    assert rq.formats() == sorted(rq.formats())
    assert {f"int{bits}" for bits in range(2, 9)} <= set(rq.formats())


def test_options_may_come_in_any_order():
    assert str(rq.get_format("int4-bf16-asym-g64")) == "int4-g64-asym-bf16"


def test_keywords_mean_what_the_scheme_says():
    assert rq.get_format("int4", group_size=128, symmetric=False) == rq.get_format("int4-g128-asym")
    assert rq.get_format("int8", group_size=-1, scale_dtype="float16") == rq.get_format("int8-row-f16")
    assert rq.get_format("int8-row", group_size=None) == rq.get_format("int8")


def test_a_format_object_is_its_own_scheme():
    fmt = rq.get_format("int4-g32")
    assert isinstance(fmt, Format)
    assert rq.get_format(fmt) is fmt


@pytest.mark.parametrize(
    ("scheme", "fragments"),
    [
        ("int9", ["unknown format 'int9'", "'int8'"]),
        ("itn4-g128", ["scheme 'itn4-g128'", "unknown format 'itn4'", "'int4'"]),
        ("int4-g128-asm", ["scheme 'int4-g128-asm'", "unknown option of int4 'asm'", "'asym'"]),
        ("int4-q128", ["unknown option of int4 'q128'"]),
        ("int4-", ["unknown option of int4 ''", "asym, bf16, f16, g#, row"]),
        ("INT4", ["unknown format 'INT4'"]),
        ("", ["unknown format ''", "int2"]),
        ("int4-g", ["unknown option of int4 'g'"]),
        ("int4-g12.5", ["group_size"]),
        ("int4-g-1", ["unknown option of int4 'g'"]),
    ],
)
def test_a_misspelt_scheme_is_refused_with_what_was_given_and_near_names(scheme, fragments):
    with pytest.raises(rq.RefquantError) as caught:
        rq.get_format(scheme)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("scheme", ["int4-g32-g64", "int4-row-g64", "int4-asym-asym", "int4-f16-bf16"])
def test_an_option_given_twice_is_refused(scheme):
    with pytest.raises(rq.RefquantError, match="is given twice"):
        rq.get_format(scheme)


def test_an_unknown_keyword_is_refused_with_near_ones():
    with pytest.raises(rq.UnknownNameError, match=r"unknown option of int4 'groupsize'; did you mean 'group_size'\?"):
        rq.get_format("int4", groupsize=64)


@pytest.mark.parametrize("size", [0, -2, 1.5, "64", True])
def test_a_group_size_that_means_nothing_is_refused(size):
    with pytest.raises(rq.RefquantError, match="group_size"):
        rq.get_format("int4", group_size=size)


@pytest.mark.parametrize("options", [{"bits": 1}, {"bits": 9}, {"scale_dtype": "float64"}])
def test_a_value_that_the_format_does_not_take_is_refused(options):
    with pytest.raises(rq.RefquantError, match=next(iter(options))):
        rq.get_format("int4", **options)
