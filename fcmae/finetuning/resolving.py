"""Puts values in place of every `auto`, and of a time, in the settings of a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fcmae.settings.auto import with_values
from fcmae.training.auto import Choices, as_recorded, length_is_open, recorded_settings, time_of
from fcmae.training.pace import seconds_per_step
from fcmae.training.processes import Processes
from fcmae.training.schedule import effective_batch_of, steps_of
from fcmae.training.task import Task


@dataclass(frozen=True)
class Rules:
    """The rules of a task.

    Attributes:
        before: returns the settings with all chosen that does not depend on the number of steps.
        after: chooses what does: (choices, steps, effective batch).
        steps: (effective batch) -> the steps of a run that is given no length, and why.
        task: makes one of settings, to measure its pace.
    """

    before: Callable[[], Choices]
    after: Callable[[Choices, int, int], None]
    steps: Callable[[int], tuple[int, str]]
    task: Callable[[Any], Task]


def resolve_settings(
    config: Any, num_images: int, processes: Processes, rules: Rules, record: str | None = None
) -> tuple[Any, list[str]]:
    """Return the settings with values in place of every `auto` and of a time, and their rules.

    A folder that holds a run has them already. Every process calls it.

    Args:
        config: of the run.
        num_images: that are trained on.
        processes: this process and the others.
        rules: of the task.
        record: folder of the run that may have them; None: config.run.dir.
    """
    saved = processes.from_main(lambda: recorded_settings(record or config.run.dir))
    if saved is not None:
        return with_values(config, as_recorded(config, saved)), []

    def choose() -> tuple[dict[str, Any], list[str]]:
        choices = rules.before()
        return choices.values, choices.lines

    chosen = processes.from_main(choose)
    choices = Choices(with_values(config, chosen[0]), chosen[1])
    effective_batch = effective_batch_of(choices.config.train, processes.world_size, num_images)
    if config.train.time is not None:
        provisional = Choices(with_values(choices.config, {"train.steps": 1, "train.time": None}))
        rules.after(provisional, 1, effective_batch)
        pace = seconds_per_step(rules.task(provisional.config), processes)
        choices.settle_time(time_of(config, config.train.time), pace, effective_batch)
    elif length_is_open(config):
        choices.settle_steps(*rules.steps(effective_batch))
    length = choices.config.train
    steps = length.steps or steps_of(length.epochs or 0.0, num_images, effective_batch)
    rules.after(choices, steps, effective_batch)
    return choices.config, choices.lines
