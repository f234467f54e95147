"""Runs one cell in a process of its own: pretraining, then evaluation.

An expected failure is one sentence in failures/NAME.txt, any other a traceback in the log; the
ablation goes on with the other cells.
"""

import os
import sys
import threading
from pathlib import Path

import torch
import yaml

from fcmae.errors import DONE, EXPECTED_ERRORS, FAILED, INTERRUPTED, ConfigError
from fcmae.pretraining.task import pretrain
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.ablation import Ablation, read_ablation
from fcmae.settings.files import spelt_here
from fcmae.studies.ablation.evaluation import evaluate_cell
from fcmae.studies.ablation.grid import Cell, build_cells
from fcmae.studies.ablation.split import open_split


def load_ablation(folder: Path | str) -> Ablation:
    """Return the ablation that a folder records; it may have moved.

    Raises:
        ConfigError: no folder of an ablation, or one whose settings cannot be read.
    """
    path = RunFolder(folder).config
    try:
        plain = spelt_here(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{folder}: no folder of an ablation: {path} cannot be read; name the run.dir of "
            "fcmae ablate."
        ) from error
    plain["run"]["dir"] = str(folder)
    return read_ablation(plain, str(path))


def failure_file(folder: Path | str, name: str) -> Path:
    """Return the file that says why a cell failed."""
    return Path(folder) / "failures" / f"{name}.txt"


def note_failure(folder: Path | str, name: str, sentence: str) -> None:
    """Write why a cell failed."""
    path = failure_file(folder, name)
    path.parent.mkdir(exist_ok=True)
    write_text(path, sentence + "\n")


def run_cell(folder: Path | str, name: str) -> int:
    """Run or continue cell `name` of the ablation in `folder`; return the exit status."""
    ablation = load_ablation(folder)
    torch.set_num_threads(ablation.run.threads)
    split = open_split(ablation)
    cells = {cell.name: cell for cell in build_cells(ablation, split, check=False)}
    if name not in cells:
        raise ConfigError(f"cell: {name!r} is not in the grid; expected one of {', '.join(cells)}.")
    cell = cells[name]
    failure_file(folder, name).unlink(missing_ok=True)
    try:
        signal = _pretrain(cell) or evaluate_cell(cell, ablation, split)
    except EXPECTED_ERRORS as error:
        note_failure(folder, name, str(error))
        print(f"fcmae: error: {error}", file=sys.stderr)
        return FAILED
    return DONE if signal is None else INTERRUPTED


def _pretrain(cell: Cell) -> str | None:
    return None if cell.is_scratch else pretrain(cell.config)


def _end_with_parent() -> None:
    """Leave at once when standard input closes: whoever started this process was killed.

    Every file of a run is complete or absent, so nothing breaks, and the cell's folder is free
    for the next start.
    """
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run_cell(sys.argv[1], sys.argv[2]))
