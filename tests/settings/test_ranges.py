"""Ranges of numbers: said once, at the setting, and checked wherever the settings come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from fcmae.errors import ConfigError
from fcmae.settings.pretrain import DataConfig, MaskConfig, PretrainConfig
from fcmae.settings.ranges import (
    FiniteFloat,
    PositiveInt,
    Seed,
    ShareBelowOne,
    at_least,
    between,
    check_ranges,
    words_for,
)
from fcmae.settings.sections import RunConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Numbers:
    free: int = -1
    count: PositiveInt = 1
    perhaps: PositiveInt | None = None
    few: Annotated[int, between(2, 4, " apples")] = 2
    many: Annotated[int, at_least(10, ": fewer are lost")] = 10
    pair: tuple[ShareBelowOne, ShareBelowOne] = (0.0, 0.5)
    several: list[PositiveInt] | PositiveInt = 1
    rate: FiniteFloat = 0.0
    seed: Seed = 0
    mode: PositiveInt | Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Sections:
    numbers: Numbers


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("count", 0, "got 0, expected 1 or more"),
        ("count", True, "got True, expected 1 or more"),
        ("count", 1.5, "got 1.5, expected 1 or more"),
        ("count", "x", "got x, expected 1 or more"),
        ("count", None, "got null, expected 1 or more"),
        ("count", math.nan, "got nan, expected 1 or more"),
        ("count", math.inf, "got inf, expected 1 or more"),
        ("perhaps", 0, "got 0, expected 1 or more, or null"),
        ("few", 5, "got 5, expected 2 to 4 apples"),
        ("many", 9, "got 9, expected 10 or more: fewer are lost"),
        ("pair", (0.5, 1.0), "got [0.5, 1.0], expected a list of 2, each 0 to below 1"),
        ("pair", (0.5,), "got [0.5], expected a list of 2, each 0 to below 1"),
        ("several", [2, 0], "got 0, expected 1 or more"),
        ("several", 0, "got 0, expected a list, each 1 or more, or 1 or more"),
        ("rate", math.inf, "got inf, expected a finite number of 0 or more"),
        ("rate", math.nan, "got nan, expected a finite number of 0 or more"),
        ("seed", 2**63, f"got {2**63}, expected a 64-bit whole number"),
        ("mode", "slow", "got slow, expected 1 or more, or auto"),
    ],
)
def test_a_number_out_of_its_range_is_refused_with_its_name(
    name: str, value: Any, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_ranges(Sections(numbers=Numbers(**{name: value})))
    assert str(caught.value) == f"numbers.{name}: {expected}."


def test_numbers_in_their_ranges_are_taken() -> None:
    within = Numbers(perhaps=3, few=4, pair=(0.25, 0.0), several=[3, 1], rate=1e300, mode=2)
    check_ranges(Sections(numbers=within))
    check_ranges(within, "--")


def test_settings_that_python_builds_are_checked_like_those_of_a_file() -> None:
    with pytest.raises(ConfigError, match=r"^mask.ratio: got 1.5, expected a share between 0 and "):
        PretrainConfig(
            run=RunConfig(dir="runs/a"),
            data=DataConfig(path="photos"),
            train=TrainConfig(steps=1),
            mask=MaskConfig(ratio=1.5),
        )


def test_a_type_is_said_in_words() -> None:
    assert words_for(dict[str, Any]) == "names with any value each, {name: value}"
    assert words_for(int | None) == "a whole number or null"
    assert words_for(str | list[str]) == "a text or a list, each a text"
