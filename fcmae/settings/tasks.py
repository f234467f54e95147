"""Which settings a fine-tuning has: those of the task that a command line or a file names."""

from pathlib import Path
from typing import Any

from fcmae.errors import ConfigError
from fcmae.settings.files import Plain, read_yaml
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import load, take_options
from fcmae.settings.segmentation import SegmentationConfig

TASKS: dict[str, type[FinetuneConfig] | type[SegmentationConfig]] = {
    "classification": FinetuneConfig,
    "segmentation": SegmentationConfig,
}
_FLAGS = ("help", "help_all", "print_config")


def task_settings(
    arguments: list[str],
) -> tuple[type[FinetuneConfig] | type[SegmentationConfig], list[str]]:
    """Return the class of the settings that a command line is about, and its words.

    `--task NAME` is spelt out as `--task.kind NAME`. Later words and files win.

    Raises:
        ConfigError: an unknown task; a file that cannot be read.
    """
    words, kind = [], "classification"
    for word in arguments:
        name, equals, text = word.partition("=")
        words.append(f"--task.kind{equals}{text}" if name == "--task" else word)
    options, _ = take_options([word for word in words if word != "-h"], flags=_FLAGS)
    for name, text in options:
        if name == "config":
            kind = kind_in(read_yaml(text, "--config")) or kind
        elif name == "task.kind":
            kind = text
    return settings_of(kind), words


def kind_in(content: Plain) -> str | None:
    """Return the task that nested settings name, None where they name none."""
    task = content.get("task")
    kind = task.get("kind") if isinstance(task, dict) else task
    return None if kind is None else str(kind)


def load_finetuning_settings(path: Path | str) -> Any:
    """Return the settings of a fine-tuning of any task from its file.

    Raises:
        ConfigError: as `load`; an unknown task.
    """
    kind = kind_in(read_yaml(str(path), "--config")) or "classification"
    return load(settings_of(kind), path)


def settings_of(kind: str) -> type[FinetuneConfig] | type[SegmentationConfig]:
    """Return the class of a task's settings; raises ConfigError for an unknown task."""
    if kind not in TASKS:
        raise ConfigError(f"task: got {kind!r}, expected {' or '.join(TASKS)}.")
    return TASKS[kind]
