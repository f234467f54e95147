"""Command lines of the small subcommands: jsonargparse with errors of one sentence."""

from __future__ import annotations

import difflib
import re

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fcmae.errors import ConfigError

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def new_parser(command: str, summary: str) -> ArgumentParser:
    """Return an empty parser of `fcmae COMMAND`."""
    return ArgumentParser(
        prog=f"fcmae {command}", description=summary, exit_on_error=False, allow_abbrev=False
    )


def add_reading_options(parser: ArgumentParser) -> None:
    """Add what every command that runs an encoder over images needs."""
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N.")
    parser.add_argument("--workers", type=int, default=2, help="Processes that read images.")
    parser.add_argument("--batch_size", type=int, default=32, help="Images at a time.")


def parse_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Return what `arguments` say; `--help` prints and exits.

    Raises:
        ConfigError: an unknown option (with near names), a wrong type, something missing, or a
            number that cannot be.
    """
    try:
        parsed = parser.parse_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{parser.prog}: {_one_sentence(parser, str(error))}") from error
    for name, lowest in (("workers", 0), ("batch_size", 1)):
        value = parsed.get(name)
        if isinstance(value, int) and value < lowest:
            raise ConfigError(f"{parser.prog}: --{name}: got {value}, expected {lowest} or more.")
    return parsed


def _one_sentence(parser: ArgumentParser, message: str) -> str:
    """Turn jsonargparse's message into: option, value given, what is expected."""
    unknown = re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
    if unknown:
        options = [name for action in parser._actions for name in action.option_strings]
        near = difflib.get_close_matches(unknown[1].partition("=")[0], options, n=2)
        hint = f"Did you mean {' or '.join(near)}?" if near else "--help lists the options."
        return f"unknown argument {unknown[1]!r}. {hint}"
    key = re.search(r'key "([\w.]+)"', message)
    expected = re.search(r"<class '(\w+)'>", message)
    value = re.search(r"(?:Got value|Given value): (.*)\s*$", message)
    if key and expected and value:
        wanted = _TYPES.get(expected[1], expected[1])
        return f"--{key[1]}: got {value[1]!r}, expected {wanted}."
    return f"{' '.join(message.split())}."
