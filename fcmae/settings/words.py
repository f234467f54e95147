"""Settings that Python gives, as the words of a command line: one way in for both."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from fcmae.errors import ConfigError
from fcmae.settings.reading import to_plain

Paths: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def names_of(paths: Paths) -> list[str]:
    """Return one path, or several, as a list of texts."""
    several = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    return [os.fspath(path) for path in several]


def words_of(settings: Mapping[str, Any], prefix: str = "", *, depth: int = 1) -> list[str]:
    """Return the words of a command line for settings, nested or by dotted names.

    Args:
        settings: {"mask": {"ratio": 0.5}} or {"mask.ratio": 0.5}.
        prefix: stands before every name.
        depth: how many levels of dicts are sections; one below is a value.
    """
    words = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and "." not in name and depth:
            words += words_of(value, f"{prefix}{name}.", depth=depth - 1)
        else:
            words.append(f"--{prefix}{name}={text_of(value)}")
    return words


def text_of(value: Any) -> str:
    """Return how a command line spells a value."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return json.dumps({str(name): item for name, item in value.items()}, default=os.fspath)
    return json.dumps(value, default=os.fspath)


def command_line(
    config: Any, given: Mapping[str, Any], settings: Mapping[str, Any], prog: str
) -> list[str]:
    """Return the words of a command: those of `config` first, since later ones win.

    Args:
        config: a YAML file, the name of a recipe, nested settings, a parsed object, or None.
        given: arguments with a name of their own; None is left out.
        settings: any others by their names.
        prog: who asks, for messages.

    Raises:
        ConfigError: a setting that is given twice.
    """
    named = {name: value for name, value in given.items() if value is not None}
    twice = sorted(named.keys() & settings.keys())
    if twice:
        raise ConfigError(f"{prog}: {twice[0]} is given twice; name it once.")
    words = words_of({**named, **settings})
    if dataclasses.is_dataclass(config):
        return [*words_of(to_plain(config)), *words]
    if isinstance(config, Mapping):
        return [*words_of(config), *words]
    return words if config is None else ["--config", os.fspath(config), *words]
