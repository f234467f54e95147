"""Ranges of numbers: annotations that say them, the words for them, and the one check of them."""

import dataclasses
import functools
import math
import types
import typing
from typing import Annotated, Any, NamedTuple

from jsonargparse.typing import ClosedUnitInterval, OpenUnitInterval, restricted_number_type
from jsonargparse.typing import PositiveFloat as _PositiveFloat

from fcmae.errors import ConfigError


class Range(NamedTuple):
    """A range of numbers, as `Annotated[int, between(1, 9)]` says it.

    Attributes:
        kind: the restricted type, which refuses numbers outside.
        words: what a message says is expected.
    """

    kind: Any
    words: str


def _range(words: str, base: type, *restrictions: tuple[str, float], join: str = "and") -> Range:
    return Range(restricted_number_type(None, base, list(restrictions), join=join), words)


def at_least(lowest: int, why: str = "") -> Range:
    """Return the whole numbers from `lowest` on; a message adds `why`."""
    name = {0: "NonNegativeInt"}.get(lowest)  # jsonargparse has a name for it already
    kind = restricted_number_type(name, int, (">=", lowest))
    return Range(kind, f"{lowest} or more{why}")


def between(lowest: int, highest: int, unit: str = "") -> Range:
    """Return the whole numbers from `lowest` to `highest`, both included."""
    return _range(f"{lowest} to {highest}{unit}", int, (">=", lowest), ("<=", highest))


PositiveInt = Annotated[int, at_least(1)]
NonNegativeInt = Annotated[int, at_least(0)]
Share = Annotated[float, Range(ClosedUnitInterval, "a share between 0 and 1")]
InnerShare = Annotated[float, Range(OpenUnitInterval, "more than 0, below 1")]
ShareBelowOne = Annotated[float, _range("0 to below 1", float, (">=", 0), ("<", 1))]
ShareAboveZero = Annotated[float, _range("more than 0 to 1", float, (">", 0), ("<=", 1))]
Duration = Annotated[float, _range("more than 0 and below 1e9", float, (">", 0), ("<", 1e9))]
DurationOrZero = Annotated[float, _range("0 or more, below 1e9", float, (">=", 0), ("<", 1e9))]
FiniteFloat = Annotated[
    float, _range("a finite number of 0 or more", float, (">=", 0), ("<", math.inf))
]
PositiveFloat = Annotated[float, Range(_PositiveFloat, "more than 0")]
Seed = Annotated[int, _range("a 64-bit whole number", int, (">=", -(2**63)), ("<", 2**63))]
EnoughToSpread = Annotated[int, at_least(3, ": fewer show no spread")]
NoneOrEnoughToSpread = Annotated[
    int, _range("0, or 3 or more: fewer show no spread", int, ("==", 0), (">=", 3), join="or")
]


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError naming the setting, its value and what is expected."""
    if not condition:
        raise ConfigError(f"{name}: got {value}, expected {expected}.")


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first number of a dataclass, or of its sections, out of range."""
    for name, hint in hints_of(type(settings)).items():
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{name}.")
        else:
            check_range(prefix + name, value, hint)


def check_range(name: str, value: Any, hint: Any) -> None:
    """Raise ConfigError unless `value` lies in the ranges that the annotation `hint` says."""
    lists = [kind for kind in _alternatives(hint) if typing.get_origin(kind) is list]
    if lists and isinstance(value, list):
        for item in value:
            check_range(name, item, typing.get_args(lists[0])[0])
    elif _has_range(hint):
        shown = list(value) if isinstance(value, tuple) else value
        fits = any(_fits(value, kind) for kind in _alternatives(hint))
        require(fits, name, "null" if value is None else shown, words_for(hint))


def hints_of(settings_class: Any, *, ranges: bool = True) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass, with its range or its type alone."""
    return _hints(settings_class, ranges)


@functools.cache
def _hints(settings_class: type, ranges: bool) -> dict[str, Any]:
    return typing.get_type_hints(settings_class, include_extras=ranges)


def words_for(hint: Any) -> str:
    """Say an annotation in the words of a user: a range, or otherwise a type."""
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Any: "any value",
    }
    if hint in words:
        return words[hint]
    if hint is type(None):
        return "null"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return hint.__metadata__[0].words
    if origin is typing.Literal:
        return ("one of " if len(inner) > 1 else "") + ", ".join(map(str, inner))
    if origin is list:
        return f"a list, each {words_for(inner[0])}"
    if origin is dict:
        return f"names with {words_for(inner[1])} each, {{name: value}}"
    if origin is tuple:
        return f"a list of {len(inner)}, each {words_for(inner[0])}"
    if len(_alternatives(hint)) > 1:
        return (", or " if _has_range(hint) else " or ").join(map(words_for, inner))
    return str(hint)


def _has_range(hint: Any) -> bool:
    return typing.get_origin(hint) is Annotated or any(map(_has_range, typing.get_args(hint)))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        try:
            hint.__metadata__[0].kind(value)
        except (ValueError, TypeError, OverflowError):
            return False
        return True
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        return (
            isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
        )
    return isinstance(value, origin or hint)
