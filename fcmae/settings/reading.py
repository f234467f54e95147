"""Reads settings: YAML files and dotted overrides into frozen dataclasses, strictly.

Unknown names, wrong types and values out of range become one ConfigError each.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from fcmae.errors import ConfigError
from fcmae.settings.ranges import words_for

Config = TypeVar("Config")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(config_class: type[Config], arguments: list[str], *, prog: str) -> Config:
    """Return the settings that `arguments` spell: `--config FILE`, `--section.name VALUE`.

    Later arguments win over earlier ones. `--help` and `--print_config` print and exit.

    Raises:
        ConfigError: a file that cannot be read, an unknown name (with near names), a wrong type,
            a missing setting, or a value that the dataclass refuses.
    """
    _check_arguments(config_class, arguments)
    return _read(config_class, prog, lambda parser: parser.parse_args(arguments))


def load(config_class: type[Config], path: Path | str) -> Config:
    """Return the settings that a YAML file holds; raises ConfigError as `parse` does."""
    return parse(config_class, ["--config", str(path)], prog="fcmae")


def from_plain(config_class: type[Config], settings: Any, *, where: str) -> Config:
    """Return the settings of nested dicts, {section: {name: value}}; the inverse of `to_plain`.

    Raises:
        ConfigError: as `parse`; an unknown name is told with `where`, the origin of the settings.
    """
    _check_content(settings, where, _sections(config_class))
    return _read(config_class, "fcmae", lambda parser: parser.parse_object(settings))


def to_plain(config: Any) -> dict[str, Any]:
    """Return nested dicts and lists of plain values, as YAML and checkpoints hold them."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def to_yaml(config: Any) -> str:
    """Return YAML that `load` turns into an equal config."""
    return yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True)


def forbidden_changes(saved: dict[str, Any], config: Any) -> dict[str, tuple[Any, Any]]:
    """Return {"section.name": (saved, new)} of what a run in the folder of `saved` must not change.

    Fields marked MAY_CHANGE may differ. A setting that `saved`, of an earlier version, does not
    have counts as its default: what that version did.
    """
    found = {}
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            default = None if field.default is dataclasses.MISSING else _plain(field.default)
            old = saved.get(section.name, {}).get(field.name, default)
            new = _plain(getattr(values, field.name))
            if old != new and not field.metadata.get("may_change"):
                found[f"{section.name}.{field.name}"] = (old, new)
    return found


@functools.cache  # building one costs a tenth of a second, and a grid has many cells
def _parser(config_class: type, prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description=config_class.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of settings.")
    parser.add_class_arguments(config_class)
    return parser


def _read(
    config_class: type[Config], prog: str, parse_with: Callable[[ArgumentParser], Any]
) -> Config:
    """Let `parse_with` use the parser of a config class, and build the dataclasses."""
    parser = _parser(config_class, prog)  # type: ignore[arg-type]  # a class can be hashed
    # Named instantiate_classes before jsonargparse 4.49, and deprecated under that name since.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        settings = parse_with(parser)
        _check_nulls(config_class, settings)
        parsed = instantiate(settings)
    except ArgumentError as error:
        raise ConfigError(_one_sentence(config_class, str(error))) from error
    return config_class(**{name: parsed[name] for name in _sections(config_class)})


def _check_nulls(config_class: type, settings: Any) -> None:
    """Raise ConfigError for a null that the type does not allow: jsonargparse lets them pass."""
    for section, section_class in typing.get_type_hints(config_class).items():
        for name, hint in typing.get_type_hints(section_class).items():
            values = settings.get(section)
            is_null = values is not None and values.get(name) is None
            if is_null and type(None) not in typing.get_args(hint):
                raise ConfigError(f"{section}.{name}: got null, expected {words_for(hint)}.")


def _sections(config_class: type) -> dict[str, set[str]]:
    """Return {section: names of its settings}."""
    hints = typing.get_type_hints(config_class)
    return {
        field.name: {inner.name for inner in dataclasses.fields(hints[field.name])}
        for field in dataclasses.fields(config_class)
    }


def _check_arguments(config_class: type, arguments: list[str]) -> None:
    """Check the spelling of every setting before jsonargparse sees it: it knows no near names."""
    sections = _sections(config_class)
    known = {f"{section}.{name}" for section, names in sections.items() for name in names}
    options = known | {"config", "help", "print_config"}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            if name.rstrip("+") not in options:
                raise _unknown("command line", name, known)
            if name == "config":
                following = arguments[position + 1 : position + 2]
                for path in [value] if value else following:
                    _check_file(path, sections)


def _check_file(path: str, sections: dict[str, set[str]]) -> None:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config: {path!r} cannot be read ({error.strerror}); expected a YAML file of "
            "settings, such as configs/quickstart.yaml."
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(f"--config: {path!r} is not valid YAML: {first}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path!r} holds no settings; expected sections such as data:.")
    _check_content(content, path, sections)


def _check_content(content: dict[Any, Any], where: str, sections: dict[str, set[str]]) -> None:
    known = {f"{section}.{name}" for section, names in sections.items() for name in names}
    for section, settings in content.items():
        if section not in sections:
            raise _unknown(where, str(section), known | set(sections))
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{where}: {section}: got {settings!r}, expected settings such as "
                f"{section}.{sorted(sections[section])[0]}."
            )
        for name in settings:
            if name not in sections[section]:
                raise _unknown(where, f"{section}.{name}", known)


def _unknown(where: str, name: str, known: set[str]) -> ConfigError:
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    if not near:  # perhaps the section is wrong, or missing
        leaf = name.rpartition(".")[2]
        near = [option for option in sorted(known) if option.rpartition(".")[2] == leaf][:3]
    hint = f"Did you mean {' or '.join(near)}?" if near else "--help lists all settings."
    return ConfigError(f"{where}: unknown setting {name!r}. {hint}")


def _one_sentence(config_class: type, message: str) -> str:
    """Turn jsonargparse's message into: setting, value given, what is expected."""
    missing = re.search(r"arguments? (?:is|are) required: (.*)", message)
    if missing:
        return f"{missing[1]}: not given, expected on the command line or in the --config file."
    key = re.search(r'key "([\w.]+)"', message)
    value = re.search(r"(?:Got value|Given value): (.*)\s*$", message)
    if key and "." in key[1] and value:
        section, _, name = key[1].partition(".")
        hints = typing.get_type_hints(typing.get_type_hints(config_class)[section])
        return f"{key[1]}: got {value[1]!r}, expected {words_for(hints[name])}."
    return " ".join(message.split())
