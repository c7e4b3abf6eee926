"""Where a tensor stands in its model, and the conditions that a mix may put on that (spec/file_types.md, section 4)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from refquant.conversion.model_facts import ModelFacts


@dataclass(frozen=True)
class Place:
    """All that a mix looks at when it chooses a tensor's type.

    Attributes:
        layer: the tensor's number among those of its role, or its block's number in a model with experts.
        layers: how many there are.
        model: the model's facts.
        has_imatrix: whether an importance matrix is given, for whatever tensor.
    """

    layer: int
    layers: int
    model: ModelFacts
    has_imatrix: bool


@dataclass(frozen=True)
class When:
    """A condition.

    Attributes:
        text: in words, as `refquant quantize --dry-run` prints it; empty where it goes without saying.
        holds: whether a place meets it.
    """

    text: str
    holds: Callable[[Place], bool]

    def __and__(self, other: "When") -> "When":
        text = ", ".join(text for text in (self.text, other.text) if text)
        return When(text, lambda place: self.holds(place) and other.holds(place))

    def __or__(self, other: "When") -> "When":
        return When(f"{self.text} or {other.text}", lambda place: self.holds(place) or other.holds(place))

    def otherwise(self, text: str) -> "When":
        """The opposite, in its own words."""
        return When(text, lambda place: not self.holds(place))


def first_part(parts: int) -> When:
    """In the first 1/parts of the layers, rounded down."""
    return When(f"in the first 1/{parts} of the layers", lambda place: place.layer < place.layers // parts)


def first(count: int) -> When:
    """Among the first `count` layers."""
    return When(f"among the first {count}", lambda place: place.layer < count)


def _outer_or_every_third(place: Place) -> bool:
    eighth = place.layers // 8
    return place.layer < eighth or place.layer >= 7 * place.layers // 8 or (place.layer - eighth) % 3 == 2


ALWAYS: Final = When("", lambda place: True)
OUTER: Final = When("in the first or last 1/8 of the layers, or every third between", _outer_or_every_third)
INNER: Final = When(
    "between the first and the last 1/8 of the layers",
    lambda place: place.layers // 8 <= place.layer < 7 * place.layers // 8,
)
GROUPED: Final = When("4 or more query heads share a key head", lambda place: place.model.query_groups >= 4)
FOUR_EXPERTS: Final = When("4 or more experts", lambda place: place.model.experts >= 4)
EIGHT_EXPERTS: Final = When("8 experts", lambda place: place.model.experts == 8)
FALCON: Final = When("falcon", lambda place: place.model.architecture == "falcon")
NOT_FALCON: Final = FALCON.otherwise("")
IMATRIX: Final = When("with an imatrix", lambda place: place.has_imatrix)
NO_IMATRIX: Final = IMATRIX.otherwise("without an imatrix")
