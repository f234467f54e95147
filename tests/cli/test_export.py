"""`fcmae export`: from a run folder to a file, and one sentence for every mistake."""

from pathlib import Path

import pytest
import timm
import torch
from tiny_run import STEP, make_config, make_run

from fcmae.__main__ import main
from fcmae.errors import MISTAKE
from fcmae.model.autoencoder import FCMAE
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.settings.reading import to_yaml


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FCMAE]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, make_run(folder)[1]


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run the command, which must fail as a user's mistake, and return its one sentence."""
    assert main(["export", *map(str, arguments)]) == MISTAKE
    out, error = capsys.readouterr()
    assert not out
    assert error.startswith("fcmae: error: ")
    assert error.count("\n") == 1
    return error


def test_export_writes_the_checkpoints_encoder(
    run: tuple[Path, FCMAE], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = run
    assert main(["export", str(folder), "--to", "timm"]) == 0
    path = folder / "export" / "encoder.safetensors"
    out = capsys.readouterr().out
    assert f"{path}: written and loaded back" in out
    assert f'num_classes=0, in_chans=1, checkpoint_path="{path}")' in out
    loaded = timm.create_model(
        "convnextv2_atto", num_classes=0, in_chans=1, checkpoint_path=str(path)
    )
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_output_names_another_file(run: tuple[Path, FCMAE], tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.safetensors"
    assert main(["export", str(run[0]), "--output", str(path), "--origin", "CC0"]) == 0
    assert path.is_file()


def test_mistakes_are_one_sentence(
    run: tuple[Path, FCMAE], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    assert "nowhere: cannot be read (No such file or directory); name a weights file or a" in (
        complaint(capsys, "nowhere")
    )
    assert "holds neither model.safetensors nor a checkpoint" in complaint(capsys, tmp_path)
    assert "--to: got 'tim', expected one of timm" in complaint(capsys, folder, "--to", "tim")
    assert "unknown argument '--outptu'. Did you mean --output?" in complaint(
        capsys, folder, "--outptu", "x"
    )
    assert "the following arguments are required: run" in complaint(capsys)


def test_a_run_without_checkpoint_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(make_config(tmp_path)))
    assert "has no checkpoint yet" in complaint(capsys, tmp_path)


def test_a_truncated_checkpoint_is_passed_over_for_an_older_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    _, model = make_run(folder)
    newer = CheckpointStore(folder / "checkpoints").save(STEP + 1, {"model": model.state_dict()})
    with (newer / "state.pt").open("r+b") as file:
        file.truncate(1000)
    assert main(["export", str(folder)]) == 0
    assert "step-00000008: damaged checkpoint, not used" in capsys.readouterr().out
    for path in (folder / "checkpoints").glob("*/state.pt"):
        path.write_bytes(b"")
    main(["export", str(folder)])
    assert "all 2 checkpoints are damaged" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    make_run(folder)
    (folder / "config.yaml").write_text(to_yaml(make_config(folder, decoder_dim=16)))
    assert "the checkpoint of step 7 does not fit the settings in" in complaint(capsys, folder)
