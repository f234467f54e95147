"""A run gives its model back on any machine: its weights are dense, whatever computed them."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from fork_server import SERVER
from pictures_on_disk import write_pictures
from safetensors.torch import load_file
from speck import SPECK
from tiny_run import make_config

from fcmae.__main__ import main
from fcmae.errors import MISTAKE
from fcmae.model.autoencoder import create_model
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.reading import to_yaml


def run_without_engine(commands: dict[str, list[str]], statuses: Path) -> None:
    """Be a machine without MinkowskiEngine, and write the exit status of each command."""
    assert sys.modules.get("MinkowskiEngine") is None
    sys.modules["MinkowskiEngine"] = None  # type: ignore[assignment]  # importing it fails
    found = {name: main(words) for name, words in commands.items()}
    statuses.write_text(json.dumps(found))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run on the backend minkowski, as such a run leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    native = create_model(make_config(folder, name=SPECK))
    RunFolder(folder).config.write_text(
        to_yaml(make_config(folder, name=SPECK, backend="minkowski"))
    )
    CheckpointStore(RunFolder(folder).checkpoints).save(7, {"model": native.state_dict()})
    line = {"step": 7, "loss": 0.9, "images_per_second": 10.0, "effective_batch": 256}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def test_a_run_of_minkowski_is_used_where_the_engine_is_missing(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for seed, name in enumerate(("a", "b")):
        write_pictures(data / name, 5, seed=seed, channels=1)
    reading = ["--device", "cpu", "--workers", "0"]
    commands = {
        "export": ["export", run],
        "embed": ["embed", run, data, "--output", tmp_path / "features.npz", *reading],
        "probe": ["probe", run, data, "--labels", "4", "--draws", "3", *reading],
        "report": ["report", run],
        "reconstruct": ["reconstruct", run, data, "--limit", "1", *reading],
        "verify": ["verify", run],
    }
    words = {name: list(map(str, command)) for name, command in commands.items()}
    statuses, log = tmp_path / "statuses.json", tmp_path / "log"
    work = partial(run_without_engine, words, statuses)
    assert SERVER.wait(SERVER.start(work, log)) == 0, log.read_text()
    # The certificate is of what ran, and that is not here.
    expected = {**dict.fromkeys(commands, 0), "verify": MISTAKE}
    assert json.loads(statuses.read_text()) == expected, log.read_text()
    assert "MinkowskiEngine is not installed" in log.read_text().replace("\n", " ")
    exported = load_file(run / "export" / "encoder.safetensors")
    assert torch.equal(
        exported["stages.0.blocks.0.conv_dw.weight"],
        create_model(make_config(run, name=SPECK)).encoder.state_dict()[
            "stages.0.blocks.0.conv_dw.weight"
        ],
    )
