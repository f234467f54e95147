"""Answers that need no computation come at once: help and mistakes load neither torch nor timm.

And a training does not wait for what it needs later, or never.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pictures_on_disk import write_pictures

from fcmae.cli import COMMANDS
from fcmae.errors import DONE, MISTAKE

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "timm", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "PIL"}
MOST_MODULES = 700  # torch alone brings a thousand
SCRIPT = """
import json, sys
from fcmae.__main__ import main
try:
    status = main(sys.argv[1:])
except SystemExit as left:
    status = left.code or 0
print("\\n" + json.dumps([status, sorted(sys.modules)]))
"""
# Notes how many steps were taken when a library is imported for the first time.
WHEN = """
import gc, json, sys
late, found = {"matplotlib", "scipy", "sklearn", "pandas"}, {}
def note(event, arguments):
    if event == "import" and arguments[0] in late and arguments[0] not in found:
        loops = [one for one in gc.get_objects() if type(one).__name__ == "TrainingLoop"]
        found[arguments[0]] = loops[0].progress.step if loops else 0
sys.addaudithook(note)
from fcmae.__main__ import main
status = main(sys.argv[1:])
print("\\n" + json.dumps([status, found]))
"""


def modules_of(*arguments: str) -> tuple[int, set[str], str]:
    """Return the exit status of a command, the modules that it loaded, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    status, modules = json.loads(done.stdout.splitlines()[-1])
    return status, set(modules), done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_without_what_takes_seconds_to_load(command: str) -> None:
    status, modules, _ = modules_of(command, "--help")
    assert status == DONE
    assert modules & HEAVY == set()
    assert len(modules) < MOST_MODULES


def test_the_list_of_commands_comes_at_once() -> None:
    status, modules, _ = modules_of("--help")
    assert status == DONE
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("pretrian --run.dir a", "unknown command 'pretrian'. Did you mean pretrain?"),
        ("pretrain --modle.name x", "unknown setting 'modle.name'. Did you mean model.name"),
        ("pretrain --run.dir a --data.path b --train.steps 0", "train.steps: got 0, expected 1"),
        ("plan --data.path", "--data.path has no value"),
        ("finetune --config absent.yaml", "cannot be read"),
        ("submit pretrain --slurm.nods 2", "unknown setting 'slurm.nods'. Did you mean slurm.node"),
        ("compare --shares [a] --train.steps many", "train.steps: got 'many', expected a whole"),
        ("verify --mask.ratoi 0.5", "unknown setting 'mask.ratoi'. Did you mean mask.ratio"),
        ("ablate --run.dir a --base.mask 3", "unknown setting 'base.mask'"),
        ("bench --repeat 3", "unknown setting '--repeat'. Did you mean --repeats"),
        ("probe run data --lables 3", "unknown argument '--lables'. Did you mean --labels"),
        ("embed run data --output x.npz --workers -1", "--workers: got -1, expected 0 or more"),
        ("reconstruct run", "images"),
        ("report", "run"),
        ("export run --tp onnx", "unknown argument '--tp'. Did you mean --to"),
        ("convert a b --too timm", "--to"),
    ],
)
def test_a_typing_error_is_told_without_what_takes_seconds_to_load(
    arguments: str, message: str
) -> None:
    status, modules, told = modules_of(*arguments.split())
    assert status == MISTAKE
    assert message in told
    assert len(told.splitlines()) == 1
    assert modules & HEAVY == set()


def test_a_training_takes_its_first_step_before_it_loads_what_draws(
    tmp_path: Path,
) -> None:
    write_pictures(tmp_path / "data", 24)
    arguments = ["pretrain", "--run.dir", "run", "--data.path", "data", "--data.image_size", "64"]
    arguments += ["--data.workers", "0", "--model.name", "convnextv2_atto", "--train.steps", "2"]
    arguments += ["--model.decoder_dim", "8", "--train.batch_size", "2", "--health.images", "4"]
    done = subprocess.run(
        [sys.executable, "-c", WHEN, *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    status, found = json.loads(done.stdout.splitlines()[-1])
    assert status == DONE, done.stderr
    assert found == {"matplotlib": 1}  # drawn after the first step, before the second
    assert (tmp_path / "run" / "first_batch.png").is_file()
