"""Makes the pages of the reference that the code itself says: settings, commands, statuses."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
from importlib import import_module
from pathlib import Path

from fcmae import errors
from fcmae.__main__ import main
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
OF_SETTINGS = {
    "pretrain": ["pretrain"],
    "plan": ["pretrain"],
    "finetune": ["finetune", "segmentation"],
    "compare": ["finetune", "segmentation"],
    "ablate": ["ablate"],
    "submit": ["submit"],
    "bench": ["bench"],
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
    parts = [f"# {_title(command)}", inspect.getdoc(config_class) or ""]
    for section in sections_of(config_class):
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _title(command: str) -> str:
    words = "finetune --task segmentation" if command == "segmentation" else command
    return f"Settings of fcmae {words}"


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
    lines += ["", "What a command takes, as `fcmae COMMAND --help` prints it:", ""]
    for name in COMMANDS:
        own, _, _ = help_of(name).partition("usage: ")
        if name in OF_SETTINGS:
            links = [f"[{_title(of)}](settings-{of}.md)" for of in OF_SETTINGS[name]]
            lines += [f"## fcmae {name}", "", f"{', '.join(links)}.", ""]
            lines += ["```text", own.strip(), "```", ""] if own.strip() else []
        else:
            lines += [f"## fcmae {name}", "", "```text", help_of(name).strip(), "```", ""]
    lines += ["## Exit statuses", "", "| status | what it says |", "|---|---|"]
    lines += [f"| {status} | {words} |" for status, words in STATUSES.items()]
    return "\n".join(lines) + "\n"


def help_of(command: str) -> str:
    """Return what `fcmae COMMAND --help` prints on a screen of 88 columns."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return shown.getvalue()
