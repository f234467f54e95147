"""Reads settings: words of a command line and YAML files into frozen dataclasses, strictly.

Unknown names, wrong types and values out of range become one ConfigError each.
"""

import dataclasses
import difflib
import functools
import itertools
import math
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from fcmae.errors import ConfigError, remark
from fcmae.settings.files import Plain, read_yaml, spelt_in_utf8
from fcmae.settings.help import asks_for_help, print_help
from fcmae.settings.ranges import hints_of, words_for
from fcmae.settings.sections import EITHER_OR

Config = TypeVar("Config")
COMMAND_LINE = "command line"
NULL = (None, "null")
_LENGTHS, _WARMUPS, *_ = EITHER_OR
_UNIT = {name: name.rpartition(".")[2].removeprefix("warmup_") for name in _LENGTHS + _WARMUPS}

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(
    config_class: type[Config],
    arguments: list[str],
    *,
    prog: str,
    otherwise: Mapping[str, str] = MappingProxyType({}),
) -> Config:
    """Return the settings that `arguments` spell: `--config FILE`, `--section.name VALUE`.

    Later arguments win. `--help`, `--help_all` and `--print_config` print and exit.

    Args:
        config_class: a dataclass of sections, or of settings without sections.
        arguments: words of a command line.
        prog: how the command is called.
        otherwise: {setting: text} for those that nobody says, in either of two ways (EITHER_OR).

    Raises:
        ConfigError: a file that cannot be read, an unknown name (with near names), a wrong type,
            a missing setting, or a value that the dataclass refuses.
    """
    if asks_for_help(arguments):
        print_help(config_class, arguments, prog)
        sys.exit()
    printing = [word for word in arguments if word.partition("=")[0] == "--print_config"]
    prefix, known = _prefix(config_class), _names(config_class)

    def check_name(name: str) -> None:
        if name not in known:
            options = [prefix + option for option in known]
            raise unknown_setting(COMMAND_LINE, prefix + name, options)

    layers = Layers(depth=1 if _sections(config_class) else 0)
    layers.add_arguments(
        several_words(
            [word for word in arguments if word not in printing], list_settings(config_class)
        ),
        check_name,
        lambda content, path: _check_content(config_class, content, path),
    )
    layers.follow_length(lambda: recorded_settings(layers.get("run.dir")))
    for name, text in otherwise.items():
        ways = next((pair for pair in EITHER_OR if name in pair), (name,))
        if all(layers.get(way) is None for way in ways):
            section, _, leaf = name.partition(".")
            layers.add({section: {leaf: text}}, prog)
    if printing:
        text = yaml.safe_dump(layers.plain)
        _parser(config_class, prog).parse_args(["--config", text, *printing])
    return _build(config_class, layers.plain, prog)


def load(config_class: type[Config], path: Path | str) -> Config:
    """Return the settings that a YAML file holds; raises ConfigError as `parse` does."""
    return parse(config_class, ["--config", str(path)], prog="fcmae")


def from_plain(config_class: type[Config], settings: Any, *, where: str) -> Config:
    """Return the settings of nested dicts, {section: {name: value}}; the inverse of `to_plain`.

    Raises:
        ConfigError: as `parse`; an unknown name is told with `where`, the origin of the settings.
    """
    _check_content(config_class, settings, where)
    return _build(config_class, settings, "fcmae")


def to_plain(config: Any) -> Plain:
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
    return yaml.safe_dump(spelt_in_utf8(to_plain(config)), sort_keys=False, allow_unicode=True)


def forbidden_changes(saved: Plain, config: Any) -> dict[str, tuple[Any, Any]]:
    """Return {"section.name": (saved, new)} of what a run in the folder of `saved` must not change.

    Fields marked MAY_CHANGE may differ, and those marked MAY_MOVE unless one of them is null. A
    setting that `saved`, of an earlier version, does not have counts as its default: what that
    version did.
    """
    found = {}
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            default = None if field.default is dataclasses.MISSING else _plain(field.default)
            default = field.metadata.get("before", default)
            old = saved.get(section.name, {}).get(field.name, default)
            new = _plain(getattr(values, field.name))
            may_move = field.metadata.get("may_move") and None not in (old, new)
            if old != new and not (field.metadata.get("may_change") or may_move):
                found[f"{section.name}.{field.name}"] = (old, new)
    return found


def take_options(
    arguments: Sequence[str],
    names: Collection[str] | None = None,
    *,
    flags: Collection[str] = (),
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (name, text) of the options `--name text` and `--name=text`, and the other words.

    Args:
        arguments: words of a command line.
        names: the options to take, "slurm." for all that begin so; None takes every option.
        flags: options without a value; their text is "".

    Raises:
        ConfigError: an option without its value.
    """
    own: list[tuple[str, str]] = []
    rest: list[str] = []
    waiting, starts = list(arguments), tuple(name for name in names or () if name.endswith("."))
    while waiting:
        word = waiting.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        is_own = names is None or name in names or name.startswith(starts)
        if not (word.startswith("--") and is_own):
            rest.append(word)
            continue
        if not equals and name not in flags:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{COMMAND_LINE}: --{name} has no value.")
            text = waiting.pop(0)
        own.append((name, text))
    return own, rest


def list_settings(config_class: type) -> set[str]:
    """Return the settings that may have several values, as the command line spells them."""
    sections = hints_of(config_class, ranges=False)
    found = set()
    for name, kind in sections.items():
        inner = hints_of(kind, ranges=False) if dataclasses.is_dataclass(kind) else {"": kind}
        for leaf, hint in inner.items():
            kinds = [hint, *typing.get_args(hint)]
            if {list, tuple} & {typing.get_origin(kind) for kind in kinds}:
                found.add(f"{name}.{leaf}".rstrip("."))
    return found


def several_words(arguments: Sequence[str], lists: Collection[str]) -> list[str]:
    """Return a command line in which `--name A B` is `--name A --name+ B`, for names in `lists`.

    A shell replaces a pattern by words: --data.path shards/*.tar.
    """
    words: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        words.append(word)
        name, equals, _ = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name.rstrip("+") not in lists:
            continue
        if not equals and waiting:
            words.append(waiting.pop(0))
        while waiting and not waiting[0].startswith("--"):
            words += [f"--{name.rstrip('+')}+", waiting.pop(0)]
    return words


class Layers:
    """Plain settings of several sources: what a later one says replaces what an earlier one said.

    Of settings that say one thing in several ways (EITHER_OR), the later source's replaces the
    earlier's, and so does the later word of a command line, which is told on stderr; a file that
    says both is left to the checks.

    Attributes:
        plain: nested dicts, `depth` levels of sections above the settings.
    """

    def __init__(self, depth: int) -> None:
        self.plain: Plain = {}
        self._depth = depth
        self._origins: dict[str, str] = {}
        self._lengths: dict[tuple[str, str], tuple[str, Any]] = {}  # said by (prefix, origin)

    def add_arguments(
        self,
        arguments: list[str],
        check_name: Callable[[str], None],
        check_file: Callable[[Plain, str], None],
        value_of: Callable[[str], Any] = str,
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add what a command line says, and the files that its --config name, in their order.

        Args:
            arguments: its words; `--name+ text` appends to a list.
            check_name: raises ConfigError for an option that is none.
            check_file: raises ConfigError for the content of a file, given with its path.
            value_of: turns the text of an option into its value.
            aliases: {short name: setting}.
        """
        options, rest = take_options(arguments)
        if rest:
            raise ConfigError(
                f"{COMMAND_LINE}: unexpected {rest[0]!r}; expected --config FILE or "
                "--SECTION.NAME VALUE."
            )
        for given, text in options:
            name = aliases.get(given, given)
            if name == "config":
                content = spelt_out(read_yaml(text, "--config"))
                check_file(content, text)
                self.add(content, f"file {text}")
                continue
            check_name(name.rstrip("+"))
            value = value_of(text)
            if name.endswith("+"):
                before = self.get(name.rstrip("+"))
                several = before if isinstance(before, list) else [before]
                value = [*(several if before is not None else []), value]
            for part in reversed(name.rstrip("+").split(".")):
                value = {part: value}
            self.add(value, COMMAND_LINE)

    def add(self, plain: Plain, origin: str) -> None:
        """Lay nested settings of one source over the others."""
        self._lay(self.plain, plain, origin, [])

    def get(self, name: str) -> Any:
        """Return a setting, or None where nobody says it."""
        value: Any = self.plain
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def follow_length(self, recorded: Callable[[], Plain | None], prefix: str = "") -> None:
        """Let the warm-up keep its share where another source than its own says the length.

        Told on stderr. A warm-up in epochs of a run in steps, or the reverse, stays as it is: its
        share depends on the images.

        Args:
            recorded: returns the settings of the run to be continued, whose warm-up stays, or None.
            prefix: of the settings' names, "" or "base.".
        """
        warmup, length = self._name_of(prefix, _WARMUPS), self._name_of(prefix, _LENGTHS)
        if warmup is None or length is None:
            return
        origin = self._origins.get(prefix + warmup, "")
        said, former = self._lengths.get((prefix, origin), ("", None))
        if _UNIT[warmup] != _UNIT.get(said) or self._origins.get(prefix + length) == origin:
            return
        section = self.get(f"{prefix}optim")
        try:
            share = float(section[warmup.partition(".")[2]]) / float(former)
            value = share * float(self.get(prefix + length))
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            return  # the checks say what is wrong
        if not (0 < share <= 1 and math.isfinite(value)):
            return
        known = (recorded() or {}).get("optim")
        if isinstance(known, dict):
            for name in _WARMUPS:
                leaf = name.partition(".")[2]
                section[leaf] = known.get(leaf)
            return
        if (said, float(former)) == (length, float(self.get(prefix + length))):
            return
        del section[warmup.partition(".")[2]]
        name = f"optim.warmup_{_UNIT[length]}"
        value = max(1, round(value)) if _UNIT[length] == "steps" else float(f"{value:.6g}")
        section[name.partition(".")[2]] = value
        remark(
            f"{prefix}{name} {value:g} follows {prefix}{length} {self.get(prefix + length)}: the "
            f"warm-up keeps the share of {100 * share:.3g} % that it has in the {origin}."
        )

    def _name_of(self, prefix: str, pair: tuple[str, ...]) -> str | None:
        """Return which of two ways to say one thing is used, or None."""
        return next((name for name in pair if self.get(prefix + name) not in NULL), None)

    def _lay(self, onto: Plain, plain: Plain, origin: str, above: list[str]) -> None:
        for name, value in plain.items():
            if isinstance(value, dict) and len(above) < self._depth and [*above, name] != ["grid"]:
                if not isinstance(onto.get(name), dict):
                    onto[name] = {}
                self._lay(onto[name], value, origin, [*above, str(name)])
            else:
                path = ".".join([*above, str(name)])
                self._replace_other(onto, path, value, origin)
                onto[name] = value
                self._origins[path] = origin
                for setting in _LENGTHS:
                    if path.endswith(setting) and value not in NULL:
                        self._lengths[path.removesuffix(setting), origin] = (setting, value)

    def _replace_other(self, onto: Plain, path: str, value: Any, origin: str) -> None:
        for pair in EITHER_OR:
            for mine, other in itertools.permutations(pair, 2):
                if path != mine and not path.endswith(f".{mine}"):
                    continue
                path_of_other = path.removesuffix(mine) + other
                leaf = other.rpartition(".")[2]
                source = self._origins.get(path_of_other)
                is_of_one_file = source == origin and origin != COMMAND_LINE
                if value in NULL or onto.get(leaf) in NULL or is_of_one_file:
                    continue
                remark(
                    f"{path} {value} of the {origin} replaces {path_of_other} "
                    f"{onto.pop(leaf)} of the {source}."
                )


def spelt_out(content: Plain) -> Plain:
    """Return settings in which `task: NAME` is the section that it is short for.

    So it is in those of an ablation's fine-tuning.
    """
    inner = content.get("finetune")
    if isinstance(inner, dict):
        content = {**content, "finetune": spelt_out(inner)}
    short = content.get("task")
    return {**content, "task": {"kind": short}} if isinstance(short, str) else content


def recorded_settings(run_dir: Any) -> Plain | None:
    """Return the settings of a run in a folder, or in the folders of a comparison; None without."""
    if not isinstance(run_dir, str) or not run_dir or "\0" in run_dir:
        return None
    for pattern in ("config.yaml", "*/config.yaml", "*/*/config.yaml"):
        try:
            for path in Path(run_dir).glob(pattern):
                return read_yaml(str(path), "run.dir")
        except (ConfigError, OSError, ValueError):
            return None  # whoever opens the folder says what is wrong with it
    return None


def unknown_setting(where: str, name: str, known: Collection[str]) -> ConfigError:
    """Return the error for a name that is no setting, with near names among `known`."""
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    if not near:  # perhaps the section is wrong, or missing
        leaf = name.rpartition(".")[2]
        near = [option for option in sorted(known) if option.rpartition(".")[2] == leaf][:3]
    hint = f"Did you mean {' or '.join(near)}?" if near else "--help lists all settings."
    return ConfigError(f"{where}: unknown setting {name!r}. {hint}")


def _parser(config_class: Any, prog: str) -> ArgumentParser:
    return _new_config_parser(config_class, prog)


@functools.cache  # building one costs a tenth of a second, and a grid has many cells
def _new_config_parser(config_class: type, prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description=config_class.__doc__, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of settings.")
    parser.add_class_arguments(config_class)
    return parser


def _build(config_class: type[Config], plain: Plain, prog: str) -> Config:
    """Give plain settings their types, and build the dataclasses."""
    parser = _parser(config_class, prog)
    # Named instantiate_classes before jsonargparse 4.49, and deprecated under that name since.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    try:
        settings = parser.parse_object(plain)
        _check_nulls(config_class, settings, _prefix(config_class))
        parsed = instantiate(settings)
    except ArgumentError as error:
        raise ConfigError(_one_sentence(config_class, str(error))) from error
    return config_class(**{name: parsed[name] for name in hints_of(config_class)})


def _check_nulls(config_class: type, settings: Any, prefix: str) -> None:
    """Raise ConfigError for a null that the type does not allow: jsonargparse lets them pass."""
    for name, hint in hints_of(config_class, ranges=False).items():
        value = settings.get(name)
        if dataclasses.is_dataclass(hint):
            _check_nulls(hint, value, f"{name}.")  # type: ignore[arg-type]  # a class
        elif value is None and type(None) not in typing.get_args(hint):
            raise ConfigError(f"{prefix}{name}: got null, expected {words_for(hint)}.")


def _sections(config_class: type) -> dict[str, list[str]]:
    """Return {section: names of its settings}; {} of a dataclass without sections."""
    hints = hints_of(config_class)
    return {n: list(hints_of(kind)) for n, kind in hints.items() if dataclasses.is_dataclass(kind)}


def _names(config_class: type) -> list[str]:
    """Return every setting as the command line spells it after its two dashes."""
    sections = _sections(config_class)
    inner = [f"{section}.{name}" for section, names in sections.items() for name in names]
    return inner or list(hints_of(config_class))


def _prefix(config_class: type) -> str:
    """Return what messages put before a name; settings without sections are spelt as options."""
    return "" if _sections(config_class) else "--"


def _check_content(config_class: type, content: Plain, where: str) -> None:
    """Raise ConfigError for a section or a setting of nested dicts that the class has not."""
    sections, known = _sections(config_class), _names(config_class)
    for section, settings in content.items():
        if section not in (sections or known):
            raise unknown_setting(where, str(section), [*known, *sections])
        if sections and not isinstance(settings, dict):
            raise ConfigError(
                f"{where}: {section}: got {settings!r}, expected settings such as "
                f"{section}.{min(sections[section])}."
            )
        for name in settings if sections else ():
            if name not in sections[section]:
                raise unknown_setting(where, f"{section}.{name}", known)


def _one_sentence(config_class: type, message: str) -> str:
    """Turn jsonargparse's message into: setting, value given, what is expected."""
    missing = re.search(r"arguments? (?:is|are) required: (.*)", message)
    if missing:
        return f"{missing[1]}: not given, expected on the command line or in the --config file."
    key, value = key_and_value(message)
    hint: Any = config_class
    for part in key.split("."):
        hint = hints_of(hint, ranges=False).get(part) if dataclasses.is_dataclass(hint) else None
    if value is None or hint is None or dataclasses.is_dataclass(hint):
        return f"{' '.join(message.split())}"
    return f"{_prefix(config_class)}{key}: got {value!r}, expected {words_for(hint)}."


def key_and_value(message: str) -> tuple[str, str | None]:
    """Return which setting a message of jsonargparse is about, and the value that it refuses."""
    key = re.search(r'key "([\w.]+)"', message)
    value = re.search(r"(?:Got value|Given value): (.*)\s*$", message)
    return (key[1] if key else ""), (value[1] if value else None)
