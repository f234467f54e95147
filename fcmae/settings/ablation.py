"""The settings of an ablation: its own sections, the base run, the grid, and the fine-tuning."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from fcmae.errors import ConfigError
from fcmae.settings.ranges import (
    InnerShare,
    NonNegativeInt,
    PositiveInt,
    at_least,
    check_ranges,
    require,
)
from fcmae.settings.reading import from_plain, parse
from fcmae.settings.submit import SlurmConfig, SubmitConfig

Plain = dict[str, Any]
FREE = ("base", "finetune", "grid")  # sections that hold settings of runs
OWN = ("run", "evaluate", "slurm")
EXAMPLE = "--grid '{mask.ratio: [0.4, 0.6], train.seed: [0, 1]}'"


@dataclass(frozen=True, kw_only=True)
class AblationRunConfig:
    """Where the ablation lives and how its cells are run."""

    dir: str
    """Folder of the ablation; starting the same command again continues it."""
    jobs: PositiveInt = 1
    """Cells trained at a time, each in a process of its own; changes no result."""
    threads: PositiveInt = 1
    """CPU threads of each cell; sums differ in their last digits with it, so it is no job's."""
    cluster: bool = False
    """Run each cell as a job of a cluster, as the section slurm says; jobs of them at a time."""


@dataclass(frozen=True, kw_only=True)
class AblationEvaluateConfig:
    """How every cell is evaluated."""

    path: str | None = None
    """Labelled images to score on; null holds a share of the base run's images back."""
    label: str | None = None
    """Which labels of `elpv`, where path is `elpv`."""
    val_share: InnerShare = 0.2
    """Share of the images (of each class) that no cell is trained on and every cell is scored on;
    a path with train/ and val/ is taken as it is cut."""
    split_seed: int = 0
    """Decides which images are held back; the same ones for every cell."""
    methods: list[Literal["kNN", "linear"]] = field(default_factory=lambda: ["kNN", "linear"])
    """Classifiers of the frozen features; an empty list scores without labels."""
    labels: Annotated[int, at_least(2)] | None = None
    """Training images whose labels a classifier sees, drawn anew `draws` times; null: all."""
    draws: PositiveInt = 5
    """Draws of labelled images, where `labels` is given; the mean over them is the score."""
    scratch: bool = True
    """Score an untrained encoder for each seed, too: the baseline without pretraining."""
    pictures: NonNegativeInt = 4
    """Held-out images whose reconstructions are shown side by side."""
    workers: NonNegativeInt = 0
    """Processes per cell that read images for the evaluation."""


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Settings of `fcmae ablate`.

    Further sections: --base.SECTION.NAME VALUE for settings of every pretraining run (--base.config
    FILE for a file of them), --grid '{SECTION.NAME: [VALUES], train.seed: [SEEDS]}' for what
    varies, --finetune.SECTION.NAME VALUE to fine-tune every encoder, too.
    """

    run: AblationRunConfig
    evaluate: AblationEvaluateConfig = field(default_factory=AblationEvaluateConfig)
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range."""
        check_ranges(self)
        SubmitConfig(slurm=self.slurm)  # checks it
        methods = self.evaluate.methods
        repeated = len(set(methods)) != len(methods)
        require(not repeated, "evaluate.methods", methods, "each method once")


@dataclass(frozen=True)
class Ablation:
    """Everything that an ablation is asked to do; `to_yaml` of it is a file for --config.

    Attributes:
        run: its folder and how it is run.
        evaluate: how its cells are evaluated.
        slurm: what each cell asks of a cluster.
        base: plain settings of the pretraining, without run.
        grid: {"section.name": values}; train.seed is one of them.
        finetune: plain settings of the fine-tuning of every encoder; {} fine-tunes none.
    """

    run: AblationRunConfig
    evaluate: AblationEvaluateConfig
    slurm: SlurmConfig
    base: Plain
    grid: dict[str, list[Any]]
    finetune: Plain


def parse_ablation(arguments: list[str]) -> Ablation:
    """Return the ablation that a command line spells; later arguments win over earlier ones.

    Raises:
        ConfigError: a file that cannot be read, an unknown name (with near names), a wrong type,
            a value that cannot be, an empty grid, or one without seeds.
    """
    if "--help" in arguments or "-h" in arguments:
        parse(AblationConfig, ["--help"], prog="fcmae ablate")
    plain: Plain = {}
    for option, text in _options(arguments):
        if option == "config":
            _merge(plain, _read_file(text, "--config"))
            continue
        option = "run.jobs" if option == "jobs" else option
        section, *names = option.split(".")
        expected = 2 if section in ("base", "finetune") else 1
        if section == "grid" and not names:
            plain["grid"] = _value(text)
        elif section in (*OWN, *FREE) and (len(names) == expected or option == "base.config"):
            value: Any = _value(text)
            for name in reversed(names):
                value = {name: value}
            _merge(plain, {section: value})
        else:
            raise _unknown("command line", option)
    return read_ablation(plain, "command line")


def read_ablation(plain: Plain, where: str) -> Ablation:
    """Return the ablation of nested dicts; raises ConfigError as `parse_ablation`."""
    for section in plain:
        if section not in (*OWN, *FREE):
            raise _unknown(where, str(section))
    own = {section: plain[section] for section in OWN if section in plain}
    config = from_plain(AblationConfig, own, where=where)
    base = _section(plain, "base", where)
    if "config" in base:
        merged = _read_file(str(base["config"]), "base.config")
        merged.pop("run", None)
        _merge(merged, {name: value for name, value in base.items() if name != "config"})
        base = merged
    if "run" in base:
        raise ConfigError(f"{where}: base.run: each cell has a folder of its own; use --run.dir.")
    grid = _check_grid(plain.get("grid"))
    finetune = _section(plain, "finetune", where)
    return Ablation(config.run, config.evaluate, config.slurm, base, grid, finetune)


def _section(plain: Plain, name: str, where: str) -> Plain:
    section = plain.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"{where}: {name}: got {section!r}, expected sections of settings.")
    return section


def _check_grid(grid: Any) -> dict[str, list[Any]]:
    """Return the grid, or raise ConfigError unless it is lists of values with seeds."""
    if not grid:
        raise ConfigError(f"grid: it is empty, so that there is nothing to run; try {EXAMPLE}.")
    if not isinstance(grid, dict):
        raise ConfigError(f"grid: got {grid!r}, expected settings and their values: {EXAMPLE}.")
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"grid: {name}: got {values!r}, expected a list of one value or more; "
                f"try {EXAMPLE}."
            )
        if any(values.count(value) > 1 for value in values):
            raise ConfigError(f"grid: {name}: got {values}, expected each value once.")
    if "train.seed" not in grid:
        raise ConfigError(
            "grid: no train.seed; expected the seeds that every setting is run with, such as "
            "train.seed: [0, 1, 2]."
        )
    return {str(name): list(values) for name, values in grid.items()}


def _options(arguments: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of `--name text` and `--name=text`."""
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            raise ConfigError(
                f"command line: unexpected {word!r}; expected --config FILE, --grid GRID, "
                "--run.dir FOLDER or --base.SECTION.NAME VALUE."
            )
        name, has_value, text = word[2:].partition("=")
        if not has_value:
            if not waiting:
                raise ConfigError(f"command line: --{name} has no value.")
            text = waiting.pop(0)
        yield name, text


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"command line: {text!r} is no value: {' '.join(str(error).split())}."
        ) from error


def _read_file(path: str, where: str) -> Plain:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{where}: {path!r} cannot be read ({error.strerror}); expected a YAML file of "
            "settings, such as configs/ablation/mask_ratio.yaml."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(f"{where}: {path!r} is not valid YAML: {first}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: {path!r} holds no settings; expected sections such as base:.")
    return content


def _merge(onto: Plain, other: Plain) -> None:
    """Overlay nested settings; a grid is replaced as a whole."""
    for name, value in other.items():
        if name != "grid" and isinstance(value, dict) and isinstance(onto.get(name), dict):
            _merge(onto[name], value)
        else:
            onto[name] = value


def _unknown(where: str, name: str) -> ConfigError:
    fields = {"run": AblationRunConfig, "evaluate": AblationEvaluateConfig, "slurm": SlurmConfig}
    known = [*FREE, "config", "jobs", *OWN, "base.config"]
    known += [
        f"{section}.{key}" for section, kind in fields.items() for key in kind.__annotations__
    ]
    near = difflib.get_close_matches(name, known, n=2)
    section, dot, rest = name.partition(".")
    if not near and dot:  # the section may be misspelt
        sections = difflib.get_close_matches(section, (*FREE, *OWN), n=1)
        near = [f"{found}.{rest}" for found in sections if found != section]
    hint = (
        f"Did you mean {' or '.join(near)}?"
        if near
        else ("Expected settings of base, grid, evaluate, finetune or run; --help lists them.")
    )
    return ConfigError(f"{where}: unknown setting {name!r}. {hint}")
