"""How long a run is: what a run may change of it later, and in which words that is offered.

The learning rate of schedule wsd is the same up to its decay whatever the length: such a run goes
on from there. A cosine depends on the length from its first step on.
"""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from fcmae.settings.files import Plain

WSD = "wsd"
Changes = dict[str, tuple[Any, Any]]


def length_names(config: Any) -> frozenset[str]:
    """Return the settings that say how long a run is, and how it ends."""
    return frozenset(
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(config)
        for field in dataclasses.fields(getattr(config, section.name))
        if field.metadata.get("length")
    )


def is_extensible(saved: Plain, config: Any) -> bool:
    """Whether the run of `saved` may get another length with the settings `config`."""
    section = saved.get("optim")
    return isinstance(section, dict) and section.get("schedule") == WSD == config.optim.schedule


def refusal(folder: Path, changes: Changes, config: Any) -> str:
    """Say why the length of a run cannot change, and what can be done instead."""
    listed = "; ".join(f"{name} {old} there, {new} now" for name, (old, new) in changes.items())
    start = "model.init_from" if hasattr(config.model, "init_from") else "model.weights"
    return (
        f"run.dir: {folder} holds a run of another length ({listed}), and its learning rate "
        "follows a cosine, whose every step depends on the length: it cannot be extended. Start "
        f"a new run in another run.dir: from the first step, with --optim.schedule {WSD} so that "
        f"it can be extended later, or from the weights of this one with --{start} "
        f"{shlex.quote(str(folder))}."
    )


def longer_command(config: Any, command: str = "pretrain") -> str:
    """Return the command that makes the run of `config` twice as long.

    A run that cannot be extended is started anew in another folder, as one that can.
    """
    name, value = "train.steps", config.train.steps
    if value is None:
        name, value = "train.epochs", config.train.epochs
    folder = Path(config.run.dir)
    words = ["fcmae", command, "--config", str(folder / "config.yaml"), f"--{name}"]
    words.append(f"{2 * value:g}" if isinstance(value, float) else str(2 * value))
    if config.optim.schedule != WSD:
        words += ["--optim.schedule", WSD, "--run.dir", f"{str(folder).rstrip('/')}-longer"]
    return shlex.join(words)
