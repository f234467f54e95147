"""Replaces `auto` in the settings of a run: once, told in a line each, and recorded.

The rules are a task's own; here is what they share. A run that has a checkpoint keeps the values
that its config.yaml records, whatever the rules would say by then.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import yaml

from fcmae.data.quick_look import QuickLook
from fcmae.data.symmetry import MIRRORED, TURNED, UPSIDE_DOWN
from fcmae.errors import ConfigError
from fcmae.model.structure import image_size_for
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.auto import autos, is_auto, seconds_of, time_in_words, with_values
from fcmae.settings.files import Plain
from fcmae.settings.sections import TaskConfig, image_height_width

# Of a time: what is left for looks at the run and for the machine's being slower at times.
RESERVED_SHARE = 0.05
FLIPS = ("horizontal_flip", "vertical_flip", "rotate90")


class Choices:
    """The settings of a run in which one `auto` after another gets its value.

    Attributes:
        config: the settings so far.
        values: {"section.name": value} of what was chosen.
        lines: a sentence per choice, with its rule.
    """

    def __init__(self, config: Any, lines: Sequence[str] = ()) -> None:
        self.config = config
        self.values: dict[str, Any] = {}
        self.lines = list(lines)

    def choose(self, name: str, value: Any, why: str) -> None:
        """Let section.name be `value` because of `why`, where it is left to a rule."""
        if is_auto(self.config, name):
            self.set({name: value})
            self.lines.append(f"auto: {name} {_short(value)}: {why}.")

    def set(self, values: dict[str, Any]) -> None:
        """Take values without a word."""
        self.values |= values
        self.config = with_values(self.config, values)

    def settle_warmup(self, steps: int, why: str) -> None:
        """Choose optim.warmup_steps, which epochs that are given leave empty."""
        if self.config.optim.warmup_epochs is None:
            self.choose("optim.warmup_steps", steps, why)
        elif is_auto(self.config, "optim.warmup_steps"):
            self.set({"optim.warmup_steps": None})

    def settle_steps(self, steps: int, why: str) -> None:
        """Fix the steps of a run that is given no length."""
        self.set({"train.steps": steps})
        self.lines.append(f"auto: train.steps {steps}: {why}.")

    def settle_time(self, seconds: float, seconds_per_step: float, effective_batch: int) -> None:
        """Fix the steps of a run that is given a time: the schedule needs their number."""
        steps = steps_in(seconds, seconds_per_step)
        if self.config.train.time is None:
            self.lines.append(
                f"auto: train.time {time_in_words(seconds)}: no train.steps, train.epochs or "
                "train.time is given; longer is better."
            )
        self.set({"train.steps": steps, "train.time": None})
        self.lines.append(
            f"auto: train.steps {steps}: {time_in_words(seconds)} at the measured "
            f"{effective_batch / seconds_per_step:.1f} images/s, {100 * RESERVED_SHARE:.0f} % kept "
            "for looks; fixed from here on."
        )


def size_by_pictures(look: QuickLook, unit: int) -> tuple[int, str]:
    """Return the image size that suits the pictures, px, and why; `unit` as `image_size_for`."""
    median = look.median_side
    size = image_size_for(median, unit)
    if median is None:
        return size, "no picture could be looked at"
    return size, f"the median picture has {median:g} px on its shorter side"


def choose_flips(choices: Choices, section: str, look: QuickLook) -> None:
    """Choose the flips of a section by a quick look at some images, where any is left open.

    Args:
        choices: of the run.
        section: that has the flips.
        look: by class where there are any, since a flip must not make one class of another.
    """
    names = [f"{section}.{name}" for name in FLIPS]
    if not any(is_auto(choices.config, name) for name in names):
        return
    seen = look.symmetry
    height, width = image_height_width(choices.config.data.image_size)
    for name, change in zip(names, (MIRRORED, UPSIDE_DOWN, TURNED), strict=True):
        is_free, why = seen.is_free(change), seen.sentence(change)
        if not seen.told_apart:
            is_free = change == MIRRORED
        if change == TURNED and height != width:
            is_free, why = False, "images are not square"
        choices.choose(name, is_free, why)


def steps_in(seconds: float, seconds_per_step: float) -> int:
    """Return the optimizer steps that fit into a time, at least 1."""
    return max(1, math.floor((1 - RESERVED_SHARE) * seconds / seconds_per_step))


def length_is_open(config: TaskConfig) -> bool:
    """Whether neither steps nor epochs say how long the run is."""
    return config.train.steps is None and config.train.epochs is None


def time_of(config: TaskConfig, otherwise: str) -> float:
    """Return the seconds that the run is given: train.time, or a time in words."""
    return seconds_of(config.train.time or otherwise)


def recorded_settings(run_dir: str) -> Plain | None:
    """Return the settings of the run in a folder; None where nothing was trained yet.

    Raises:
        ConfigError: the folder's config.yaml is damaged.
    """
    folder = RunFolder(run_dir)
    try:
        if not (folder.config.is_file() and CheckpointStore(folder.checkpoints).steps()):
            return None
        saved = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return None  # opening the folder says what is wrong with it
    return saved if isinstance(saved, dict) else None


def as_recorded(config: Any, saved: Plain) -> dict[str, Any]:
    """Return {"section.name": value} of all that `config` leaves open and a run has recorded.

    A setting that a run of an earlier version does not have counts as what that version did.
    """
    values = _as_before(config, saved)
    for name in autos(config):
        section, _, leaf = name.partition(".")
        fields = {field.name: field for field in dataclasses.fields(getattr(config, section))}
        value = saved.get(section, {}).get(leaf, fields[leaf].metadata.get("before"))
        values[name] = tuple(value) if isinstance(value, list) else value
    if length_is_open(config):
        train = saved.get("train", {})
        values |= {f"train.{name}": train.get(name) for name in ("steps", "epochs")}
        values["train.time"] = None
    return values


def _as_before(config: Any, saved: Plain) -> dict[str, Any]:
    """Return {"section.name": value} of settings that nobody changed and a run did not yet have."""
    values = {}
    for section in dataclasses.fields(config):
        now, then = getattr(config, section.name), saved.get(section.name, {})
        for field in dataclasses.fields(now):
            is_new = "before" in field.metadata and field.name not in then
            if is_new and getattr(now, field.name) == field.default:
                values[f"{section.name}.{field.name}"] = field.metadata["before"]
    return values


def check_resolved(config: Any) -> None:
    """Raise ValueError where a rule is still to be asked: a run needs values."""
    left = list(autos(config))
    if left:
        raise ValueError(f"settings without a value: {', '.join(left)}")
    if length_is_open(config):
        raise ConfigError("train.steps, train.epochs, train.time: none is given; expected one.")


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)
