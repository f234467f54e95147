"""Makes the pages of the reference that the code itself says: settings, commands, statuses."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

from fcmae import errors
from fcmae.cli import COMMANDS
from fcmae.settings.ablation import AblationConfig
from fcmae.settings.bench import BenchSettings
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.help import Section, sections_of
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.settings.submit import SubmitConfig

FOLDER = "reference/generated"
SETTINGS = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "segmentation": SegmentationConfig,
    "ablate": AblationConfig,
    "submit": SubmitConfig,
    "bench": BenchSettings,
}
STATUSES = {
    errors.DONE: "done",
    errors.FAILED: "a check or a training failed, as the last sentence says",
    errors.MISTAKE: "a mistake in what was asked: one sentence says it, nothing was started",
    errors.INTERRUPTED: "interrupted by a signal with a checkpoint written: start it again",
    errors.INTERRUPTED_AT_ONCE: "interrupted by Ctrl-C before or after the training",
}


def write(docs: Path) -> None:
    """Write the pages below `docs`; a page that has not changed is left as it is."""
    pages = {f"settings-{name}": _settings(name) for name in SETTINGS}
    pages |= {"commands": _commands()}
    folder = docs / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        page = folder / f"{name}.md"
        if not page.exists() or page.read_text("utf-8") != text:
            page.write_text(text, encoding="utf-8")


def _settings(command: str) -> str:
    config_class = SETTINGS[command]
    title = "finetune --task segmentation" if command == "segmentation" else command
    parts = [f"# Settings of fcmae {title}", (config_class.__doc__ or "").strip()]
    for section in sections_of(config_class):
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {section.name}", section.about] if section.name else []
    for setting in section.settings:
        default = "must be given" if setting.default is None else f"default `{setting.default}`"
        parts.append(
            f"`{setting.name}`\n"
            f": {_escaped(setting.sentence)} Takes {_escaped(setting.expected)}; {default}."
        )
    return parts


def _escaped(text: str) -> str:
    """Escape Markdown's marks outside of code, which stands between backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def _commands() -> str:
    lines = ["# Commands", "", "| command | what it does |", "|---|---|"]
    for name, place in COMMANDS.items():
        module, _, function = place.partition(":")
        summary = getattr(
            import_module(module), f"{function.upper()}_SUMMARY" if function else "SUMMARY"
        )
        lines.append(f"| `fcmae {name}` | {summary} |")
    lines += ["", "`fcmae COMMAND --help` lists what a command takes.", "", "## Exit statuses", ""]
    lines += ["| status | what it says |", "|---|---|"]
    lines += [f"| {status} | {words} |" for status, words in STATUSES.items()]
    return "\n".join(lines) + "\n"
