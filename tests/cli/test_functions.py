"""The commands as Python functions: the same runs as the console's, and nothing left behind."""

from __future__ import annotations

import gc
import inspect
import os
import random
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_runs
import timm
import torch
import yaml
from fork_server import SERVER
from pictures_on_disk import write_pictures

import fcmae
from fcmae import ConfigError, Run
from fcmae.errors import DONE

SURFACE = {
    "FCMAE": None,
    "FCMAEOutput": None,
    "Run": ["path", "stopped_by", "device"],
    "convert_state_dict": ["state", "to", "source"],
    "finetune": ["data", "run_dir", "weights", "config", "settings"],
    "load": ["source", "device"],
    "pretrain": ["data", "run_dir", "model", "config", "settings"],
    "read_image": ["path", "bands", "reader"],
}
ERRORS = {
    "BackendUnavailableError", "CheckpointError", "ConfigError", "DataError", "DiskError",
    "NonFiniteLossError", "UnsupportedModelError",
}  # fmt: skip
OF_A_RUN = {
    "classes", "config", "embed", "encoder", "export", "health", "info", "is_finished", "metrics",
    "model", "network", "predict", "reconstruct", "scores",
}  # fmt: skip
STEPS = 4
SETTINGS: dict[str, Any] = {
    "data.image_size": 64,
    "data.workers": 0,
    "model.decoder_dim": 8,
    "mask.ratio": 0.5,
    "optim.warmup_steps": 1,
    "train.batch_size": 4,
    "train.steps": STEPS,
    "train.device": "cpu",
    "log.every_steps": 1,
    "log.num_pictures": 1,
    "log.tensorboard": False,
    "evaluate.draws": 0,
    "checkpoint.every_steps": 1,
}
pretrain = partial(fcmae.pretrain, model="convnextv2_speck")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("functions") / "pictures"
    for seed, name in enumerate(("bright", "dark")):
        write_pictures(folder / name, 40, seed=seed)  # the fewest of which some are held out
    return folder


@pytest.fixture(scope="module")
def run(pictures: Path) -> Run:
    return pretrain(pictures, pictures.parent / "run", **SETTINGS)


def test_the_public_surface_is_this_and_every_name_is_documented() -> None:
    assert set(fcmae.__all__) == SURFACE.keys() | ERRORS
    for name, parameters in SURFACE.items():
        found = getattr(fcmae, name)
        assert inspect.getdoc(found), name
        if parameters is not None:
            assert list(inspect.signature(found).parameters) == parameters, name
        if inspect.isfunction(found):
            assert "Raises:" in found.__doc__, name
    members = {name for name in vars(Run) if not name.startswith("_")}
    assert members == OF_A_RUN
    for name in OF_A_RUN:
        assert inspect.getdoc(inspect.getattr_static(Run, name)), name


def test_a_run_from_python_is_that_of_the_console_bit_for_bit(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    words = real_runs.options({"model.name": "convnextv2_speck", **SETTINGS}, {})
    words = [word.replace("=False", "=false") for word in words]
    where = [f"--data.path={pictures}", f"--run.dir={tmp_path / 'console'}"]
    log = tmp_path / "log"
    assert real_runs.run(["pretrain", *where, *words], log) == DONE, log.read_text()
    real_runs.assert_same_run(run.path, tmp_path / "console")
    assert run.is_finished
    assert run.stopped_by is None


def test_a_run_tells_its_settings_metrics_and_health(run: Run) -> None:
    assert run.config.mask.ratio == 0.5
    assert run.metrics["step"].tolist()[-1] == STEPS
    loss = run.metrics["loss"]
    assert np.isfinite(loss[~np.isnan(loss)]).sum() == STEPS
    assert np.isfinite(run.health["health/rank_me"]).all()
    assert run.scores == ""
    assert "finished" in repr(run)


def test_a_run_gives_its_encoder_features_pictures_and_exports(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    loaded = fcmae.load(run.path, "cpu")
    assert isinstance(loaded, Run)
    features = loaded.embed(pictures / "dark")
    assert len(features.paths) == 40
    drawn = loaded.reconstruct(pictures / "dark", tmp_path / "drawn", limit=2)
    assert [file.suffix for file in drawn.iterdir()] == [".png"]
    folder = loaded.export(tmp_path / "folder", to="timm-folder")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = loaded.encoder.forward_features(image)
        torch.testing.assert_close(model.forward_features(image), expected)
    with pytest.raises(ConfigError, match="encoder's"):
        loaded.predict(pictures)


def test_fine_tuning_starts_from_a_run_and_predicts(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    tuned = fcmae.finetune(
        pictures,
        tmp_path / "tuned",
        run,
        config={
            "data": {"image_size": 64, "workers": 0, "val_share": 0.5},
            "model.name": "convnextv2_speck",
            "train": {"batch_size": 4, "steps": 3, "device": "cpu"},
            "log.tensorboard": False,
        },
        **{"train.steps": 2},
    )
    assert tuned.is_finished
    assert tuned.classes == ("bright", "dark")
    found = tuned.predict([np.zeros((70, 80, 3), np.uint8)])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert tuned.config.train.steps == 2


@pytest.mark.parametrize("kind", ["file", "nested", "parsed"])
def test_settings_come_from_a_file_a_dict_or_an_object_and_keywords_win(
    kind: str, run: Run, pictures: Path, tmp_path: Path
) -> None:
    nested = real_runs_settings(pictures, tmp_path / "run")
    config: Any = nested
    if kind == "file":
        config = tmp_path / "my.yaml"
        config.write_text(yaml.safe_dump(nested))
    if kind == "parsed":
        config = run.config
    made = fcmae.pretrain(config=config, run_dir=tmp_path / "run", **{"train.steps": 1})
    assert made.metrics["step"].max() == 1
    assert made.config.model.decoder_dim == 8


def real_runs_settings(pictures: Path, folder: Path) -> dict[str, dict[str, Any]]:
    nested: dict[str, dict[str, Any]] = {"run": {"dir": str(folder)}}
    given = {**SETTINGS, "data.path": str(pictures), "model.name": "convnextv2_speck"}
    for name, value in given.items():
        section, _, leaf = name.partition(".")
        nested.setdefault(section, {})[leaf] = value
    return nested


def test_mistakes_are_the_consoles_sentences(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mask\.ratoi.*mask\.ratio"):
        pretrain(pictures, tmp_path / "run", **{**SETTINGS, "mask.ratoi": 0.5})
    with pytest.raises(ConfigError, match=r"data\.path is given twice; name it once"):
        pretrain(pictures, tmp_path / "run", **SETTINGS, **{"data.path": "elsewhere"})
    with pytest.raises(ConfigError, match="train"):
        pretrain(pictures, tmp_path / "run", **{**SETTINGS, "train.batch_size": "many"})
    assert list(tmp_path.iterdir()) == []


def interrupted_and_continued(pictures: str, folder: str) -> None:
    """Be a notebook whose stop button is pressed, and whose cell is run again."""
    real_runs.signal_in("step", 2, signal.SIGINT)()
    first = pretrain(pictures, folder, **SETTINGS)
    assert first.stopped_by == "SIGINT"
    assert not first.is_finished
    assert first.metrics["step"].max() < STEPS
    second = pretrain(pictures, folder, **SETTINGS)
    assert second.stopped_by is None
    assert second.is_finished


def test_the_stop_button_of_a_notebook_costs_nothing(
    run: Run, pictures: Path, tmp_path: Path
) -> None:
    work = partial(interrupted_and_continued, str(pictures), str(tmp_path / "run"))
    log = tmp_path / "log"
    assert SERVER.wait(SERVER.start(work, log)) == 0, log.read_text()
    real_runs.assert_same_run(tmp_path / "run", run.path)


def test_a_run_in_a_thread_is_the_same(run: Run, pictures: Path, tmp_path: Path) -> None:
    found: list[Run] = []
    thread = threading.Thread(
        target=lambda: found.append(pretrain(pictures, tmp_path / "run", **SETTINGS))
    )
    thread.start()
    thread.join()
    assert found[0].is_finished
    real_runs.assert_same_run(tmp_path / "run", run.path)


def global_state() -> list[Any]:
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        [signal.getsignal(number) for number in handled],
        os.getcwd(),
        dict(os.environ),
    ]


def test_a_run_leaves_the_state_of_the_process_as_it_was(pictures: Path, tmp_path: Path) -> None:
    before = global_state()
    pretrain(pictures, tmp_path / "run", **{**SETTINGS, "train.steps": 1})
    assert global_state() == before


def twenty_runs(pictures: str, folder: str) -> None:
    """Be a process that trains twenty times; it must not grow."""
    counts = []
    for number in range(20):
        where = Path(folder) / str(number)
        pretrain(pictures, where, **{**SETTINGS, "train.steps": 1, "log.tensorboard": True})
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        counts.append(
            (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), resident)
        )
    print(counts)
    assert counts[-1][:2] == counts[4][:2]
    assert counts[-1][2] - counts[4][2] < 40e6  # of which an allocator keeps some


@pytest.mark.slow
def test_twenty_runs_in_one_process_leave_nothing(pictures: Path, tmp_path: Path) -> None:
    work = partial(twenty_runs, str(pictures), str(tmp_path))
    log = tmp_path / "log"
    assert SERVER.wait(SERVER.start(work, log)) == 0, log.read_text()
