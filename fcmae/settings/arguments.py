"""Command lines of the commands with few options: jsonargparse with errors of one sentence."""

import difflib
import re
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from fcmae.errors import ConfigError
from fcmae.settings.ranges import NonNegativeInt, PositiveInt, check_range, words_for
from fcmae.settings.reading import key_and_value


def new_parser(command: str, summary: str) -> ArgumentParser:
    """Return an empty parser of `fcmae COMMAND`, for a command with few options."""
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
        message = str(error)
        unknown = re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE)
        options = [name for action in parser._actions for name in action.option_strings]
        if unknown:
            near = difflib.get_close_matches(unknown[1].partition("=")[0], options, n=2)
            hint = f"Did you mean {' or '.join(near)}?" if near else "--help lists the options."
            message = f"unknown argument {unknown[1]!r}. {hint}"
        key, value = key_and_value(message)
        expected = re.search(r"<class '(\w+)'>", message)
        if value is not None and expected:
            kind = {"int": int, "float": float, "bool": bool}.get(expected[1], str)
            message = f"--{key}: got {value!r}, expected {words_for(kind)}."
        raise ConfigError(f"{parser.prog}: {' '.join(message.split()).rstrip('.')}.") from error
    for name, numbers in (("workers", NonNegativeInt), ("batch_size", PositiveInt)):
        if name in parsed:
            check_range(f"{parser.prog}: --{name}", parsed[name], numbers)
    return parsed


def make_output(path: str) -> Path:
    """Make the folder of --output before anything is computed for it, and return it.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {path!r} cannot be made ({error.strerror}); name another folder."
        ) from error
    return folder
