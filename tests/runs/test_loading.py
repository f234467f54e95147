"""A run gives its model back on any machine: its weights are dense, whatever computed them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pictures_on_disk import write_pictures
from safetensors.torch import load_file
from tiny_run import make_config

from fcmae.errors import MISTAKE
from fcmae.model.autoencoder import create_model
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder
from fcmae.settings.reading import to_yaml

# What a machine without MinkowskiEngine does with the commands of its arguments.
WITHOUT_ENGINE = """
import json, sys
sys.modules["MinkowskiEngine"] = None  # importing it fails
from fcmae.__main__ import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run on the backend minkowski, as such a run leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    native = create_model(make_config(folder))
    RunFolder(folder).config.write_text(to_yaml(make_config(folder, backend="minkowski")))
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
    words = json.dumps([list(map(str, command)) for command in commands.values()])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_ENGINE, words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    statuses = dict(zip(commands, json.loads(done.stdout.splitlines()[-1]), strict=True))
    # The certificate is of what ran, and that is not here.
    assert statuses == {**dict.fromkeys(commands, 0), "verify": MISTAKE}, done.stderr
    assert "MinkowskiEngine is not installed" in done.stderr.replace("\n", " ")
    exported = load_file(run / "export" / "encoder.safetensors")
    assert torch.equal(
        exported["stages.0.blocks.0.conv_dw.weight"],
        create_model(make_config(run)).encoder.state_dict()["stages.0.blocks.0.conv_dw.weight"],
    )
