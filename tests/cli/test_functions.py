"""The commands as Python functions: the same runs as the console's, and nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import io
import json
import os
import random
import signal
import threading
from functools import partial
from pathlib import Path
from typing import Any

import ablation_in_process
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
from fcmae.__main__ import main
from fcmae.errors import DONE

pytestmark = pytest.mark.usefixtures("undrawn")

# {name: parameters of a function; None of a class}
SURFACE = {
    "FCMAE": None,
    "FCMAEOutput": None,
    "Run": ["path", "stopped_by", "device"],
    "ablate": ["data", "run_dir", "model", "grid", "config", "settings"],
    "compare": [
        "data", "run_dir", "weights", "starts", "against", "shares", "config", "settings"
    ],
    "convert_state_dict": ["state", "to", "source"],
    "curate": [
        "source", "images", "threshold", "correlation", "label_first", "exclude", "model",
        "batch_size", "workers", "device"
    ],
    "finetune": ["data", "run_dir", "weights", "config", "settings"],
    "inspect": ["paths", "pixels", "workers", "exclude"],
    "load": ["source", "device"],
    "pretrain": ["data", "run_dir", "model", "config", "settings"],
    "read_image": ["path", "bands", "reader"],
    "verify": ["run", "config", "grn_scope", "device", "settings"],
}  # fmt: skip
ERRORS = {
    "BackendUnavailableError", "CheckpointError", "ConfigError", "DataError", "DiskError",
    "NonFiniteLossError", "UnsupportedModelError",
}  # fmt: skip
OF_A_RUN = {
    "classes", "config", "embed", "encoder", "export", "health", "info", "is_finished", "metrics",
    "model", "network", "predict", "probe", "reconstruct", "scores",
}  # fmt: skip
# What the commands return, with what a script may rely on.
RESULTS = {
    "fcmae.reports.curation.Curation": {
        "near_duplicates", "odd_pictures", "label_first", "scores", "sentences", "save",
        "_repr_html_",
    },
    "fcmae.reports.inspection.Inspection": {
        "problems", "exact", "near", "settings", "sentences", "save", "_repr_html_",
    },
    "fcmae.reports.writing.Report": {
        "columns", "sentences", "failures", "stopped_by", "save", "_repr_html_",
    },
    "fcmae.verification.certificate.Certificate": {"holds", "lines", "save", "_repr_html_"},
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
        if parameters is None:
            continue
        signature = inspect.signature(found)
        assert list(signature.parameters) == parameters, name
        if inspect.isfunction(found):
            assert "Raises:" in found.__doc__, name
            assert signature.return_annotation is not signature.empty, name
            for parameter in signature.parameters.values():
                assert parameter.annotation is not parameter.empty, f"{name}: {parameter}"
                assert f"{parameter.name}" in found.__doc__.partition("Args:")[2], parameter
    for name in ERRORS:
        assert issubclass(getattr(fcmae, name), Exception)
        assert inspect.getdoc(getattr(fcmae, name)), name
    members = {name for name in vars(Run) if not name.startswith("_")}
    assert members == OF_A_RUN
    for name in OF_A_RUN:
        assert inspect.getdoc(inspect.getattr_static(Run, name)), name


def test_every_command_that_finds_something_returns_it_with_save_and_what_a_notebook_shows() -> (
    None
):
    for place, names in RESULTS.items():
        module, _, name = place.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        described = inspect.getdoc(found) or ""
        for member in names:
            value = inspect.getattr_static(found, member, None)
            is_attribute = member in described and member in found.__annotations__
            assert is_attribute or value is not None, f"{place}.{member}"
            if not member.startswith("_"):
                assert is_attribute or inspect.getdoc(value), f"{place}.{member}"


def test_the_parameters_of_functions_are_the_words_of_the_console() -> None:
    help_of = {}
    for command in ("inspect", "curate", "verify", "compare"):
        with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
            main([command, "--help"])
        help_of[command] = shown.getvalue().replace("-", "_")
    own = {"paths", "source", "images", "config", "settings", "run", "data", "run_dir", "weights"}
    for command, said in help_of.items():
        for parameter in set(SURFACE[command] or []) - own:
            name = {"model": "model.name"}.get(parameter, parameter)
            assert f"__{name}" in said, f"{command}: {parameter}"


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
    scores = loaded.probe(pictures, labels=8, draws=3, workers=0)
    assert len(scores.accuracies["linear"]["pretrained"]) == 3
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


def test_a_set_is_inspected_and_its_settings_train(pictures: Path, tmp_path: Path) -> None:
    found = fcmae.inspect(pictures, workers=0)
    assert found.settings["data"]["path"] == str(pictures)
    assert found.problems == {}
    assert "80 files" in found.sentences[0]
    assert "<iframe" in found._repr_html_()
    page, settings = found.save(tmp_path / "page.html", write=tmp_path / "my.yaml")
    assert "Contact sheet" in page.read_text()
    short = {**SETTINGS, "train.steps": 1}
    made = pretrain(config=found.settings, run_dir=tmp_path / "run", **short)
    assert made.is_finished
    assert yaml.safe_load(settings.read_text())["data"] == found.settings["data"]
    with pytest.raises(ConfigError, match=r"--pixels: got 0, expected 1 or more"):
        fcmae.inspect(pictures, pixels=0)
    with pytest.raises(ConfigError, match=r"'/proc/page\.html' cannot be written"):
        found.save("/proc/page.html")


def test_a_folder_is_curated_by_a_run(run: Run, pictures: Path, tmp_path: Path) -> None:
    found = fcmae.curate(run, [pictures / "dark", pictures / "bright"], label_first=3)
    assert len(found.paths) == len(found.scores) == 80
    assert len(found.label_first) == 3
    assert set(found.near_duplicates) < set(found.paths)
    assert f"Features of {run.path}" in found._repr_html_()
    written = found.save(tmp_path / "curation")
    assert written[2].read_text().splitlines() == found.label_first
    with pytest.raises(ConfigError, match="IMAGES: no images in"):
        fcmae.curate(run, tmp_path)
    with pytest.raises(ConfigError, match="--threshold: got 2, expected more than 0 up to 1"):
        fcmae.curate(run, pictures, threshold=2)


def test_a_run_is_certified_and_so_are_settings(run: Run, tmp_path: Path) -> None:
    found = fcmae.verify(run)
    assert found.holds
    assert "claims hold" in found._repr_html_()
    assert json.loads(found.save(tmp_path / "certificate.json").read_text())["holds"] is True
    assert found.save(tmp_path / "certificate.txt").read_text() == found.to_text() + "\n"
    with pytest.raises(ConfigError, match="says itself what its model is"):
        fcmae.verify(run, **{"mask.ratio": 0.5})
    with pytest.raises(ConfigError, match="image or batch"):
        fcmae.verify(run, grn_scope="all")


def test_starts_are_compared(run: Run, pictures: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "starts": {"own": run, "scratch": None},
        "shares": [100],
        "data.image_size": 64,
        "data.workers": 0,
        "data.val_share": 0.5,
        "model.name": "convnextv2_speck",
        "train.steps": 2,
        "train.batch_size": 4,
        "train.device": "cpu",
        "compare.seeds": 3,
        "log.tensorboard": False,
    }
    found = fcmae.compare(pictures, tmp_path / "compared", **given)
    assert found.stopped_by is None
    assert set(found.columns["start"]) >= {"own", "scratch"}
    assert all(0 <= value <= 100 for value in found.columns["balanced_accuracy_percent"])
    assert (tmp_path / "compared" / "report.html").is_file()
    page, text, table = found.save(tmp_path / "elsewhere")
    assert "Which start is the better one?" in page.read_text()
    assert found.sentences[0] in text.read_text()
    assert table.read_text() == found.table
    with pytest.raises(ConfigError, match=r"--shares: got \[0\]"):
        fcmae.compare(pictures, tmp_path / "none", **{**given, "shares": [0]})


def test_a_grid_is_run_and_continued(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation_in_process.use(monkeypatch)
    given: dict[str, Any] = {f"base.{name}": value for name, value in SETTINGS.items()}
    del given["base.mask.ratio"]
    given |= {"base.train.steps": 1, "evaluate.methods": [], "evaluate.pictures": 0}
    given |= {"evaluate.scratch": False}
    grid = {"mask.ratio": [0.25, 0.5], "train.seed": [0]}
    name = "convnextv2_speck"
    where = tmp_path / "grid"
    found = fcmae.ablate(pictures, where, name, grid=grid, **given)
    assert found.failures == ()
    assert found.columns["mask.ratio"][:2] == [0.25, 0.5]
    assert set(found.columns["state"]) == {"done"}
    assert "Ablation: mask.ratio" in found._repr_html_()
    nested = yaml.safe_load((where / "config.yaml").read_text())
    again = fcmae.ablate(config=nested)
    assert again.columns == found.columns
    with pytest.raises(ConfigError, match=r"no train\.seed"):
        fcmae.ablate(pictures, where, name, grid={"mask.ratio": [0.5]}, **given)


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
