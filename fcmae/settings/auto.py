"""`auto`: the word of a setting whose value follows from the images, the batch and the length.

Here are the word, the types of settings that take it, and which settings of a run still say it.
The rules lie where what they ask is known: fcmae.pretraining.recipe, fcmae.finetuning.recipe.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from fcmae.errors import ConfigError

AUTO: Any = "auto"
SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}
OTHERS = ("train.device",)  # whose auto is no rule of a recipe
EXAMPLES = "a time such as 20min, 1.5h or 90s"

if TYPE_CHECKING:
    # Whoever trains gets settings in which every `auto` is resolved, hence plain types for mypy.
    Value = TypeVar("Value")
    OrAuto = Annotated[Value, "or auto"]
else:

    class OrAuto:
        """`OrAuto[float]`: a number, or the word auto until a recipe has resolved it."""

        def __class_getitem__(cls, hint: Any) -> Any:
            """Return the annotation with the word."""
            return hint | Literal["auto"]


def is_auto(config: Any, name: str) -> bool:
    """Whether section.name of a config is left to a recipe."""
    section, _, leaf = name.partition(".")
    return getattr(getattr(config, section), leaf) == AUTO


def autos(config: Any) -> Iterator[str]:
    """Yield section.name of every setting that is left to a recipe."""
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            name = f"{section.name}.{field.name}"
            is_left = field.default == AUTO and getattr(values, field.name) == AUTO
            if is_left and name not in OTHERS:
                yield name


def with_values(config: Any, values: dict[str, Any]) -> Any:
    """Return the config with values of {section.name: value}; checked as a new one is."""
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, leaf = name.partition(".")
        sections.setdefault(section, {})[leaf] = value
    return dataclasses.replace(
        config,
        **{
            section: dataclasses.replace(getattr(config, section), **changed)
            for section, changed in sections.items()
        },
    )


def seconds_of(time: str, name: str = "train.time") -> float:
    """Return the seconds of a time in words: 20min, 1.5h, 90s, 2d, or 1h30min.

    Raises:
        ConfigError: told with `name`; it is no time above 0.
    """
    total, number = 0.0, ""
    rest = time.replace(" ", "").lower()
    while rest:
        length = next((i for i, letter in enumerate(rest) if letter.isalpha()), len(rest))
        number, rest = rest[:length], rest[length:]
        length = next((i for i, letter in enumerate(rest) if not letter.isalpha()), len(rest))
        unit, rest = rest[:length], rest[length:]
        try:
            total += float(number) * SECONDS[unit]
        except (ValueError, KeyError):
            total = math.nan
            break
    if not 0 < total < math.inf:
        raise ConfigError(f"{name}: got {time!r}, expected {EXAMPLES}.")
    return total


def time_in_words(seconds: float) -> str:
    """Return seconds as `seconds_of` reads them, rounded: 90s, 20min, 1.5h."""
    if seconds < 120:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}min" if seconds < 7200 else f"{seconds / 3600:.1f}h"
