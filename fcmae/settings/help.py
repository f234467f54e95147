"""What `--help` prints: the settings that people set, or with `--help_all` every one of them."""

import dataclasses
import functools
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import docstring_parser
import yaml

from fcmae.settings.ranges import hints_of, words_for

HELP = ("-h", "--help", "--help_all")
MOST_COLUMNS = 100


class Setting(NamedTuple):
    """One setting, as help and the reference show it.

    Attributes:
        name: `section.name`, or the name alone where there are no sections.
        expected: the values that it takes, in words.
        default: its default as YAML; None where it has none and must be given.
        sentence: what it is.
    """

    name: str
    expected: str
    default: str | None
    sentence: str


class Section(NamedTuple):
    """The settings of one section; name "" for settings without sections."""

    name: str
    about: str
    settings: list[Setting]


def asks_for_help(arguments: list[str]) -> bool:
    """Whether a command line has -h, --help or --help_all."""
    return not set(HELP).isdisjoint(arguments)


def print_help(config_class: type, arguments: list[str], prog: str) -> None:
    """Print the help that a command line asks for; a reader that has left is no fault."""
    try:
        print(help_text(config_class, arguments, prog), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end


def help_text(config_class: type, arguments: list[str], prog: str) -> str:
    """Return the help that a command line asks for.

    Args:
        config_class: a dataclass of sections, or of settings without sections; its `COMMON`, where
            it has one, names the settings that `--help` shows.
        arguments: words of a command line, with one of HELP.
        prog: how the command is called.
    """
    sections = sections_of(config_class)
    dotted = "SECTION.SETTING" if sections[0].name else "SETTING"
    common: tuple[str, ...] = getattr(config_class, "COMMON", ())
    lines = [f"usage: {prog} [--config FILE|RECIPE] [--{dotted} VALUE ...]", ""]
    lines += [*_filled(inspect.getdoc(config_class) or "", ""), ""]
    if common and "--help_all" not in arguments:
        known = {setting.name: setting for section in sections for setting in section.settings}
        lines += _described([known[name] for name in common])
        lines += ["", f"{prog} --help_all lists all {len(known)} settings;"]
        lines += ["--print_config prints the values that a command line comes to."]
        return "\n".join(lines)
    for section in sections:
        lines += [section.about, *_described(section.settings), ""]
    return "\n".join([*lines, "--print_config prints the values that a command line comes to."])


def sections_of(config_class: type) -> list[Section]:
    """Return the sections of a dataclass with all their settings; one, "", where it has none."""
    hints = hints_of(config_class)
    inner = {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    if not inner:
        return [Section("", "Settings:", list(_settings(config_class, "")))]
    return [
        Section(name, _first_sentence(kind), list(_settings(kind, f"{name}.")))
        for name, kind in inner.items()
    ]


def _settings(kind: Any, prefix: str) -> Iterator[Setting]:
    sentences, hints = _sentences(kind), hints_of(kind)
    for field in dataclasses.fields(kind):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = None if default is dataclasses.MISSING else _spelt(default)
        sentence = sentences.get(field.name, "")
        yield Setting(prefix + field.name, words_for(hints[field.name]), shown, sentence)


@functools.cache
def _sentences(kind: type) -> dict[str, str]:
    """Return {field: the docstring below it}; a subclass's wins."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            parsed = docstring_parser.parse_from_object(base).params
            found |= {each.arg_name: " ".join((each.description or "").split()) for each in parsed}
    return found


def _first_sentence(kind: Any) -> str:
    text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    return text.removesuffix(".") + ":"


def _spelt(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()


def _filled(text: str, indent: str) -> list[str]:
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
    return [
        line
        for part in paragraphs
        for line in textwrap.wrap(part, width, initial_indent=indent, subsequent_indent=indent)
    ]


def _described(settings: list[Setting]) -> list[str]:
    lines = []
    for setting in settings:
        default = "must be given" if setting.default is None else f"default {setting.default}"
        lines.append(f"  --{setting.name}")
        lines += _filled(f"{setting.sentence} Takes {setting.expected}; {default}.", " " * 6)
    return lines
