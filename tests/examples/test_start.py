"""The start page's commands and the page about Python, run as they stand on small data.

What is smaller than in the files is stated here: pictures, model, length.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation_in_process
import pytest
import real_runs
from example_scripts import EXAMPLES, run_script
from pictures_on_disk import write_pictures

import fcmae
from fcmae.__main__ import main
from fcmae.errors import DONE

MODEL = {
    "data.image_size": 64,
    "data.workers": 0,
    "model.name": "convnextv2_speck",
    "train.batch_size": 4,
    "train.device": "cpu",
    "train.steps": 2,
    "log.tensorboard": False,
}
PRETRAIN: dict[str, Any] = {
    **MODEL,
    "data.label": None,
    "model.decoder_dim": 8,
    "optim.warmup_steps": 1,
    "evaluate.draws": 0,
    "log.num_pictures": 1,
}
FINETUNE: dict[str, Any] = {**MODEL, "data.val_share": 0.5}
SMALLER: dict[str, dict[str, Any]] = {
    "pretrain": PRETRAIN,
    "finetune": FINETUNE,
    "embed": {"workers": 0},
    "probe": {"workers": 0, "labels": 8, "draws": 3},
    "curate": {"workers": 0},
    "predict": {"workers": 0},
    "inspect": {"workers": 0},
    "export": {},
}


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of labelled pictures, beside which the commands run."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("bright", "dark")):
        write_pictures(tmp_path / "pictures" / name, 20, channels=1, seed=seed)
    return tmp_path / "pictures"


def commands_of(script: str, pictures: Path) -> list[list[str]]:
    """Return the commands of a script of examples/, of these pictures instead of the page's."""
    text = re.sub(r"\\\n\s*", " ", (EXAMPLES / script).read_text(encoding="utf-8"))
    text = re.sub(r"/path/to/\S+|\belpv\b", str(pictures), text)
    text = text.replace("python pretrain.py", "fcmae pretrain")
    text = text.replace("configs/quickstart.yaml", str(EXAMPLES.parent / "configs/quickstart.yaml"))
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "fcmae"]


def test_the_commands_of_the_start_page_run_one_after_another(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in commands_of("start.sh", pictures):
        smaller = SMALLER[words[0]]
        if words[0] == "pretrain" and "quickstart" in " ".join(words):
            smaller = {**smaller, "data.path": pictures}
        options = [word.replace("=None", "=null").replace("=False", "=false")
                   for word in real_runs.options(smaller, {})]  # fmt: skip
        assert main([*words, *(options if words[0] != "export" else [])]) == DONE, words
    said = capsys.readouterr().out
    assert "\nLook at runs/quickstart/reconstructions, runs/quickstart/loss_curve.png.\n" in said
    assert "\nLook at runs/mine-finetune/" in said
    made = ("features.npz", "probe.safetensors", "inspection.html", "my.yaml", "predictions.csv")
    assert [name for name in made if not (tmp_path / name).is_file()] == []
    for name in ("quickstart", "mine"):
        assert (tmp_path / "runs" / name / "export/encoder-timm/model.safetensors").is_file()
        assert list((tmp_path / "runs" / name / "reconstructions").glob("*.png"))
    assert (tmp_path / "curation/curation.html").is_file()


def smaller_function(function: Callable[..., Any], changes: dict[str, Any]) -> Callable[..., Any]:
    """Return a function of fcmae that takes these settings instead of those of the page."""

    def call(*arguments: Any, **given: Any) -> Any:
        if "train.steps" in changes:
            given.pop("train.time", None)
        return function(*arguments, **{**given, **changes})

    return call


def test_the_page_about_python_runs(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = {"mask.ratio": [0.5], "train.seed": [0]}
    ablation_in_process.use(monkeypatch)
    of_cells = {f"base.{name}": value for name, value in PRETRAIN.items() if name != "model.name"}
    changes: dict[str, dict[str, Any]] = {
        "pretrain": PRETRAIN,
        "finetune": FINETUNE,
        "compare": {**FINETUNE, "shares": [100], "compare.seeds": 3},
        "ablate": {**of_cells, "grid": grid, "evaluate.methods": [], "evaluate.scratch": False},
        "inspect": {"workers": 0},
    }
    for name, settings in changes.items():
        monkeypatch.setattr(fcmae, name, smaller_function(getattr(fcmae, name), settings))
    text = re.sub(r"/path/to/\w+(/\w+)?", str(pictures), (EXAMPLES / "functions.py").read_text())
    (tmp_path / "functions.py").write_text(text)
    left = runpy.run_path(str(tmp_path / "functions.py"))
    assert left["run"].is_finished
    assert left["vectors"].shape == (40, 20)
    assert left["found"].classes == ("bright", "dark")
    assert left["settings"]["data"]["in_chans"] == 1
    assert left["certificate"].holds
    assert left["compared"].stopped_by is None
    assert left["grid"].failures == ()
    made = ("inspection.html", "my.yaml", "curation/curation.html", "report/report.html")
    assert [name for name in made if not (tmp_path / name).is_file()] == []


def test_the_model_by_itself_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    left = run_script(monkeypatch, "model.py")
    assert left["pictures"].shape == left["images"].shape
    assert left["encoder"] is left["model"].encoder


def test_the_released_start_has_the_first_loss_that_the_page_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    model = run_script(monkeypatch, "released_start.py")["model"]
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert 10 < model(images).loss < 25
