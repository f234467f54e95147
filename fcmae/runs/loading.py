"""Gives back the settings and the model of a run folder."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fcmae.errors import CheckpointError, ConfigError
from fcmae.model.autoencoder import FCMAE, create_anywhere, create_model
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import load
from fcmae.settings.sections import CheckpointConfig


class LoadedRun(NamedTuple):
    """A run as it stands: its settings, its model in evaluation mode on the CPU, its steps."""

    config: PretrainConfig
    model: FCMAE
    step: int


def load_run(run_dir: str | Path, *, as_it_ran: bool = False) -> LoadedRun:
    """Return the model of the newest undamaged checkpoint of a run folder.

    Args:
        run_dir: the folder.
        as_it_ran: insist on the run's backend; otherwise native takes the place of one that is not
            installed, since the weights are the same.

    Raises:
        BackendUnavailableError: `as_it_ran`, and the run's backend is not installed.
        ConfigError: no folder of a pretraining run, or one whose settings cannot be read.
        CheckpointError: no checkpoint yet, all of them damaged, or one of another model.
    """
    config = load_run_config(run_dir)
    folder = RunFolder(run_dir)
    step, state = newest_checkpoint(folder, config.checkpoint)
    model = create_model(config) if as_it_ran else create_anywhere(config)
    with fitting_settings(folder, step):
        model.load_state_dict(state["model"], strict=True)
    return LoadedRun(config, model.eval(), step)


def newest_checkpoint(folder: RunFolder, cadence: CheckpointConfig) -> tuple[int, dict[str, Any]]:
    """Return (step, state) of a run's newest undamaged checkpoint.

    Raises:
        CheckpointError: none yet, or all of them damaged.
        DiskError: it cannot be read now.
    """
    found = CheckpointStore(folder.checkpoints).load_newest()
    if found is None:
        raise CheckpointError(
            f"{folder.path}: the run has no checkpoint yet; let it train until the first one "
            f"(checkpoint.every_steps is {cadence.every_steps})."
        )
    return found


@contextlib.contextmanager
def fitting_settings(folder: RunFolder, step: int) -> Iterator[None]:
    """Turn what says that a checkpoint is of another model into a CheckpointError."""
    try:
        yield
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{folder.checkpoints}: the checkpoint of step {step} does not fit the settings in "
            f"{folder.config} ({reason[:500]}); restore the config.yaml that the run was made with."
        ) from error


def is_pretraining_run(folder: str | Path) -> bool:
    """Whether the folder's settings are those of a pretraining run."""
    return "mask" in _top_level(folder)


def is_finetuning_run(folder: str | Path) -> bool:
    """Whether the folder's settings are those of a fine-tuning run."""
    return "augment" in _top_level(folder)


def is_ablation(folder: str | Path) -> bool:
    """Whether the folder's settings are those of an ablation."""
    return "grid" in _top_level(folder)


def _top_level(folder: str | Path) -> Collection[str]:
    """Return the sections of config.yaml, none when it cannot be read."""
    try:
        plain = yaml.safe_load(RunFolder(folder).config.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return ()
    return plain if isinstance(plain, dict) else ()


def load_run_config(run_dir: str | Path) -> PretrainConfig:
    """Return the settings of a run folder.

    Raises:
        ConfigError: no folder of a pretraining run, or one whose settings cannot be read.
    """
    folder = RunFolder(run_dir)
    if not folder.config.is_file():
        what = "has no config.yaml" if folder.path.is_dir() else "is no folder"
        raise ConfigError(
            f"run folder: {str(run_dir)!r} {what}; name the folder that fcmae pretrain made "
            "(its run.dir)."
        )
    return load(PretrainConfig, folder.config)
