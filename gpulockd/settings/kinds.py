"""What the value of a setting may be. A block's annotation says its kind; the range stands in the annotation too."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

SHORTEST_S = 0.05
"""The shortest interval that any setting may have (in seconds)."""

DAY_S = 86_400.0
LONGEST_S = 366 * DAY_S
"""The longest time that any setting may say (in seconds); more is a slip of the hand, and some clocks overflow."""


class Span(msgspec.Struct, frozen=True):
    """A duration: `least_s` … `most_s` (in seconds), or nothing at all where `zero` is true."""

    least_s: float = SHORTEST_S
    most_s: float = LONGEST_S
    zero: bool = False


class Number(msgspec.Struct, frozen=True):
    """A number without a unit. `share`: it is a part of a whole, and "10%" is another way to say 0.1."""

    least: float
    most: float
    share: bool = False


class Whole(msgspec.Struct, frozen=True):
    """A whole number."""

    least: int
    most: int


class Text(msgspec.Struct, frozen=True):
    """One line of text."""

    most_characters: int = 4096


Seconds = Annotated[float, Span()]
SecondsOrZero = Annotated[float, Span(zero=True)]
UpToADay = Annotated[float, Span(most_s=DAY_S)]
UpToADayOrZero = Annotated[float, Span(most_s=DAY_S, zero=True)]
Share = Annotated[float, Number(0.0, 1.0, share=True)]
Count = Annotated[int, Whole(0, 1_000_000)]
Tries = Annotated[int, Whole(0, 1_000)]
Line = Annotated[str, Text()]

Level = Literal["info", "warning", "critical"]
"""How bad an alert is."""

DEFAULT_MARKS: dict[Any, Any] = {
    float: Span(),
    int: Whole(-(2**53), 2**53),
    str: Text(),
}
"""What holds for an annotation that says no range: a plain `float` is a duration."""


def given(kind: Any) -> Any:
    """The kind of a value that is there: without "or nothing"."""
    if get_origin(kind) in (Union, UnionType):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def bare(kind: Any) -> Any:
    """The kind of a value that is there, without its range."""
    kind = given(kind)
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind
