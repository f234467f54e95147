"""What is known of runs and ablations, read from their folders alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcmae.machine.cost import effective_batch, seconds_per_image
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.settings.ablation import Ablation
from fcmae.settings.reading import to_plain
from fcmae.studies.ablation.evaluation import read_result
from fcmae.studies.ablation.grid import (
    RATIO,
    Cell,
    build_cells,
    default_settings,
    effective_ratio_of,
)
from fcmae.studies.ablation.split import Split, open_split
from fcmae.studies.ablation.worker import failure_file, load_ablation

# Label-free measures worth comparing, in the order of preference, and what larger values mean.
LABEL_FREE = {
    "health/rank_me": "RankMe of held-out features (higher: more dimensions used)",
    "health/diversity_stage_3": "feature diversity, last stage (near 0: collapse)",
    "health/loss_at_0.6": "held-out loss at ratio 0.6 (lower: better reconstruction)",
}

Key = tuple[tuple[str, Any], ...]  # a setting of the grid that can be a key


@dataclass(frozen=True)
class Record:
    """One cell and how it ended.

    Attributes:
        cell: its settings.
        state: done, failed or unfinished.
        failure: why it failed, or "".
        lines: of its metrics.jsonl.
        result: of its evaluation, {} when there is none.
    """

    cell: Cell
    state: str
    failure: str
    lines: list[dict[str, Any]] = field(repr=False)
    result: dict[str, Any] = field(repr=False)

    @property
    def measures(self) -> dict[str, float]:
        """Scores in per cent (the mean over label draws), and the last label-free measures."""
        scores = {
            name: sum(draws) / len(draws) for name, draws in self.result.get("scores", {}).items()
        }
        for name in LABEL_FREE:
            values = [line[name] for line in self.lines if line.get(name) is not None]
            if values and self.state == "done":
                scores[name] = values[-1]
        return scores

    @property
    def seconds(self) -> float | None:
        """Time of training alone, at the measured median rate of all processes together."""
        per_image = seconds_per_image(self.lines)
        return None if per_image is None or not self.result else per_image * self.result["images"]

    @property
    def step_milliseconds(self) -> float | None:
        """Time of one optimizer step."""
        per_image = seconds_per_image(self.lines)
        batch = effective_batch(self.lines, self.cell.config.train)
        return None if per_image is None else 1000 * per_image * batch

    @property
    def key(self) -> Key:
        """Its setting, without the seed."""
        return key_of(self.cell.settings)


@dataclass(frozen=True)
class AblationRecord:
    """An ablation and how its cells ended.

    Attributes:
        ablation: what was asked for.
        split: the images that were held out.
        records: of the pretrained cells.
        baselines: of untrained encoders.
        default: the setting that the others are compared with.
    """

    ablation: Ablation
    split: Split
    records: list[Record]
    baselines: list[Record]
    default: Key

    @property
    def keys(self) -> list[Key]:
        """Settings, in the order of the grid."""
        return list(dict.fromkeys(record.key for record in self.records))

    @property
    def seeds(self) -> list[int]:
        """Seeds, in the order of the grid."""
        return list(dict.fromkeys(record.cell.seed for record in self.records))

    @property
    def measures(self) -> list[str]:
        """Names of what was measured, scores first."""
        names = [name for record in self.records for name in record.measures]
        known = dict.fromkeys(names)
        scores = [name for name in known if name not in LABEL_FREE]
        return scores + [name for name in LABEL_FREE if name in known]

    def table(self, measure: str) -> dict[Key, dict[int, float]]:
        """Return {setting: {seed: value}} of a measure."""
        return tabulate(self.records, self.keys, measure)

    def baseline_table(self, measure: str) -> dict[Key, dict[int, float]]:
        """Return {setting of the encoder: {seed: value}} of the untrained encoders."""
        keys = list(dict.fromkeys(record.key for record in self.baselines))
        return tabulate(self.baselines, keys, measure)

    def effective_ratio(self, key: Key) -> float:
        """Return the share of patches that is hidden in fact."""
        record = next(record for record in self.records if record.key == key)
        return effective_ratio_of(record.cell.config)

    def title(self, key: Key) -> str:
        """Return a setting in words, a mask ratio as the effective one."""
        words = []
        for name, value in key:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            if name == RATIO:
                words.append(f"ratio {shown} ({self.effective_ratio(key):.3f} hidden)")
            else:
                words.append(f"{name.partition('.')[2].replace('_', ' ')} {shown}")
        return ", ".join(words) or "the base run"


def tabulate(
    records: Sequence[Record], keys: Sequence[Key], measure: str
) -> dict[Key, dict[int, float]]:
    """Return {setting: {seed: value}}; settings without a value have an empty dict."""
    table: dict[Key, dict[int, float]] = {key: {} for key in keys}
    for record in records:
        if measure in record.measures:
            table[record.key][record.cell.seed] = record.measures[measure]
    return table


def key_of(settings: Mapping[str, Any]) -> Key:
    """Return settings as something that can be a key: lists become tuples."""
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in settings.items()
    )


def read_ablation_record(folder: Path | str) -> AblationRecord:
    """Return what a folder of `fcmae ablate` holds.

    Raises:
        ConfigError: it holds no ablation, or one that cannot be read.
    """
    ablation = load_ablation(folder)
    split = open_split(ablation)
    cells = build_cells(ablation, split, check=False)
    records = [_record(cell, ablation) for cell in cells]
    return AblationRecord(
        ablation,
        split,
        [record for record in records if not record.cell.is_scratch],
        [record for record in records if record.cell.is_scratch],
        key_of(default_settings(cells, ablation)),
    )


def _record(cell: Cell, ablation: Ablation) -> Record:
    result = read_result(cell, ablation)
    failure = failure_file(ablation.run.dir, cell.name)
    if result is not None:
        state, why = "done", ""
    elif failure.exists():
        state, why = "failed", failure.read_text(encoding="utf-8", errors="replace").strip()
    else:
        state, why = "unfinished", ""
    lines = read_metrics(RunFolder(cell.folder).metrics)
    return Record(cell, state, why, lines, result or {})


def common_settings(records: Sequence[Record]) -> dict[str, Any]:
    """Return {"section.name": value} of the settings that all cells share, without run."""
    plains = [to_plain(record.cell.config) for record in records]
    return {
        f"{section}.{name}": value
        for section, values in plains[0].items()
        for name, value in values.items()
        if section != "run" and all(plain[section][name] == value for plain in plains)
    }
