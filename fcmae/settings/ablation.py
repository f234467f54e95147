"""The settings of an ablation: its own sections, the base run, the grid, and the fine-tuning."""

import difflib
import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fcmae.errors import ConfigError
from fcmae.settings.files import Plain, read_value, read_yaml
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.help import asks_for_help
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.ranges import (
    InnerShare,
    NonNegativeInt,
    PositiveInt,
    at_least,
    check_ranges,
    hints_of,
    require,
)
from fcmae.settings.reading import (
    COMMAND_LINE,
    Layers,
    from_plain,
    list_settings,
    parse,
    recorded_settings,
    several_words,
    spelt_out,
    unknown_setting,
)
from fcmae.settings.sections import EITHER_OR
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.settings.submit import SlurmConfig, SubmitConfig
from fcmae.settings.tasks import kind_in, settings_of

FREE = ("base", "finetune", "grid")  # sections that hold settings of runs
OWN = ("run", "evaluate", "slurm")
FILES = ("base.config", "finetune.config")
ALIASES = {"jobs": "run.jobs", "finetune.task": "finetune.task.kind"}
# Of a file of a fine-tuning: what every cell has of its own.
OF_A_CELL = ("run", "model.name", "model.weights", "model.stem_stride", "train.seed")
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
    varies, --finetune.SECTION.NAME VALUE to fine-tune every encoder, too (--finetune.config FILE
    for a file of a fine-tuning; --finetune.task segmentation for masks).
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

    @property
    def finetune_class(self) -> type[FinetuneConfig] | type[SegmentationConfig]:
        """Class of the settings of the fine-tuning: those of the task that it names.

        Raises:
            ConfigError: an unknown task.
        """
        return settings_of(kind_in(self.finetune) or "classification")


def parse_ablation(arguments: list[str]) -> Ablation:
    """Return the ablation that a command line spells; later arguments win over earlier ones.

    Raises:
        ConfigError: a file that cannot be read, an unknown name (with near names), a wrong type,
            a value that cannot be, an empty grid, or one without seeds.
    """
    if asks_for_help(arguments):
        parse(AblationConfig, arguments, prog="fcmae ablate")
    layers = Layers(depth=2)
    lists = list_settings(AblationConfig)
    lists |= {f"base.{name}" for name in list_settings(PretrainConfig)}
    for kind in (FinetuneConfig, SegmentationConfig):
        lists |= {f"finetune.{name}" for name in list_settings(kind)}
    words = several_words(arguments, lists)
    layers.add_arguments(words, _check_name, _check_sections, read_value, ALIASES)
    for section in ("base", "finetune"):
        layers.follow_length(functools.partial(_recorded, layers, section), f"{section}.")
    return read_ablation(layers.plain, COMMAND_LINE)


def _recorded(layers: Layers, section: str) -> Plain | None:
    """Return a section of the ablation to be continued, or None."""
    return (recorded_settings(layers.get("run.dir")) or {}).get(section)


def read_ablation(plain: Plain, where: str) -> Ablation:
    """Return the ablation of nested dicts; raises ConfigError as `parse_ablation`."""
    _check_sections(plain, where)
    own = {section: plain[section] for section in OWN if section in plain}
    config = from_plain(AblationConfig, own, where=where)
    layers = _with_its_file(plain, "base", config.run.dir, ("run",))
    if "run" in layers.plain:
        raise ConfigError(f"{where}: base.run: each cell has a folder of its own; use --run.dir.")
    grid = _check_grid(plain.get("grid"))
    for name, values in grid.items():  # of two ways to say one thing, the grid's is the base's, too
        section, _, leaf = name.partition(".")
        if any(name in pair for pair in EITHER_OR) and layers.get(name) is None:
            layers.add({section: {leaf: values[0]}}, "grid")
    finetune = _with_its_file(plain, "finetune", config.run.dir, OF_A_CELL).plain
    return Ablation(config.run, config.evaluate, config.slurm, layers.plain, grid, finetune)


def _with_its_file(plain: Plain, section: str, folder: str, without: tuple[str, ...]) -> Layers:
    """Return a section's settings over those of the file that its `config` names, if any.

    Args:
        plain: nested settings.
        section: of them: base or finetune.
        folder: of the ablation.
        without: sections and settings of the file that do not count.
    """
    layers = Layers(depth=1)
    own = spelt_out(dict(plain.get(section, {})))
    if "config" in own:
        path = str(own.pop("config"))
        content = spelt_out(read_yaml(path, f"{section}.config"))
        for name in without:
            first, _, leaf = name.partition(".")
            inner = content.get(first) if leaf else content
            if isinstance(inner, dict):
                inner.pop(leaf or first, None)
        layers.add(content, f"file {path}")
    layers.add(own, f"{section} run" if section == "base" else section)
    layers.follow_length(lambda: (recorded_settings(folder) or {}).get(section))
    return layers


def _check_sections(plain: Plain, where: str) -> None:
    for section, settings in plain.items():
        if section not in (*OWN, *FREE):
            raise _unknown(where, str(section))
        if section in ("base", "finetune") and not isinstance(settings, dict):
            raise ConfigError(f"{where}: {section}: got {settings!r}, expected settings.")


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


def _check_name(option: str) -> None:
    """Raise ConfigError unless the command line may say `option`."""
    section, *names = option.split(".")
    expected = {"base": 2, "finetune": 2, "grid": 0}.get(section, 1)
    if section not in (*OWN, *FREE) or (len(names) != expected and option not in FILES):
        raise _unknown(COMMAND_LINE, option)


def _unknown(where: str, name: str) -> ConfigError:
    known = [*FREE, *OWN, *FILES, "config", "jobs"]
    for section, kind in hints_of(AblationConfig).items():
        known += [f"{section}.{key}" for key in hints_of(kind)]
    section, dot, rest = name.partition(".")
    for found in difflib.get_close_matches(section, (*FREE, *OWN), n=1) if dot else ():
        known.append(f"{found}.{rest}")  # the section may be misspelt
    return unknown_setting(where, name, {option for option in known if option != name})
