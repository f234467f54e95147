"""The starts that a comparison takes, the settings of each of their runs, and what they cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fcmae.data.augmentation import mean_and_std
from fcmae.errors import EXPECTED_ERRORS, ConfigError
from fcmae.finetuning.setup import weights_metadata
from fcmae.machine.cost import training_seconds
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import is_pretraining_run, load_run_config
from fcmae.runs.metrics import read_metrics
from fcmae.settings.auto import AUTO
from fcmae.settings.finetune import FinetuneConfig, FinetuneModelConfig
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.comparison.scores import OTHER, PRETRAINED, SCRATCH
from fcmae.weights.public import is_public

# What weights say of the pictures that they know; a start from nothing takes it from the others.
READ_AS = ("value_range", "bands", "background", "reader")

Settings = TypeVar("Settings", FinetuneConfig, SegmentationConfig)  # of the task


@dataclass(frozen=True)
class Arm:
    """One start of a comparison.

    Attributes:
        name: of it.
        weights: a run, a file or the name of published weights; None draws them.
    """

    name: str
    weights: str | None


@dataclass(frozen=True)
class Arms:
    """All starts of a comparison.

    Attributes:
        all: in their order.
        are_named: by the settings; else they are `pretrained` and what it is compared with.
        takes_own_model: each is of the model that its weights name; else of the first's.
    """

    all: tuple[Arm, ...]
    are_named: bool = False
    takes_own_model: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of all."""
        return tuple(arm.name for arm in self.all)

    @property
    def weights(self) -> tuple[str, ...]:
        """Of all that are not from scratch."""
        return tuple(arm.weights for arm in self.all if arm.weights is not None)

    @property
    def first_trained(self) -> Arm:
        """The first that is not from scratch: by it rules decide what is left to them."""
        return next(arm for arm in self.all if arm.weights is not None)


def arms_of(config: FinetuneConfig | SegmentationConfig, against: str | None = None) -> Arms:
    """Return the starts that the settings name: compare.starts, or model.weights and another."""
    starts = config.compare.starts
    if starts is None:
        second = Arm(SCRATCH if against is None else OTHER, against)
        return Arms((Arm(PRETRAINED, config.model.weights), second))
    if against is not None:
        raise ConfigError(
            f"--against: got {against!r} beside compare.starts; add it to the starts instead."
        )
    named = tuple(Arm(name, weights) for name, weights in starts.items())
    return Arms(named, True, config.model.name == AUTO)


def by_first(config: Settings, arms: Arms) -> Settings:
    """Return the settings whose model.weights are those by which rules decide."""
    model = dataclasses.replace(config.model, weights=arms.first_trained.weights)
    compare = dataclasses.replace(config.compare, starts=None)
    return dataclasses.replace(config, model=model, compare=compare)


def arm_folder(config: FinetuneConfig | SegmentationConfig, arm: Arm, seed: int) -> str:
    """Return the run folder of one fine-tuning."""
    return str(Path(config.run.dir) / f"{arm.name.replace(' ', '-')}-{seed}")


def settings_of(config: Settings, arms: Arms, arm: Arm, seed: int) -> Settings:
    """Return the settings of one fine-tuning.

    Named starts are fed pictures as their own weights know them; otherwise both are fed as the
    first start is.

    Args:
        config: of `by_first`, with nothing left to a rule.
        arms: all starts.
        arm: one of them.
        seed: of the run.
    """
    model: Any = config.model
    optim, compare, data = config.optim, config.compare, config.data
    known = weights_metadata(config)
    if arm.weights is None:
        rate = optim.base_lr if compare.scratch_base_lr is None else compare.scratch_base_lr
        optim = dataclasses.replace(optim, base_lr=rate, layer_decay=compare.scratch_layer_decay)
    if arm is not arms.first_trained:
        model = dataclasses.replace(model, weights=arm.weights)
    if arm.weights is None and isinstance(model, FinetuneModelConfig):
        model = dataclasses.replace(model, head_start="random")  # there is nothing to probe
    if arms.are_named and arm.weights is None:
        left = {name: known.get(name) for name in READ_AS if getattr(data, name) is None}
        told = {name: value for name, value in left.items() if value is not None}
        data = dataclasses.replace(data, **told)
    elif arms.are_named:
        known = weights_metadata(dataclasses.replace(config, model=model))
        if arms.takes_own_model and "model_name" in known:
            model = dataclasses.replace(model, name=str(known["model_name"]))
    mean, std = mean_and_std(data, known)
    return dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=arm_folder(config, arm, seed)),
        data=dataclasses.replace(data, mean=list(mean), std=list(std)),
        train=dataclasses.replace(config.train, seed=seed),
        compare=dataclasses.replace(compare, scratch=False, starts=None),
        optim=optim,
        model=model,
    )


def seconds_of(run_dir: str | Path) -> float | None:
    """Return the seconds that a run has trained, as its log says; None where it does not."""
    try:
        return training_seconds(read_metrics(RunFolder(run_dir).metrics))
    except EXPECTED_ERRORS:
        return None


def pretraining_seconds(weights: str | None) -> float | None:
    """Return the seconds of own pretraining behind a start, with those of its own start.

    Published weights cost nothing here; None where nobody has measured it, such as of a file.
    """
    total, seen = 0.0, set[str]()
    while weights is not None and not is_public(weights) and weights not in seen:
        seconds = seconds_of(weights) if is_pretraining_run(weights) else None
        if seconds is None:
            return None
        total += seconds
        seen.add(weights)
        weights = load_run_config(weights).model.init_from
    return total
