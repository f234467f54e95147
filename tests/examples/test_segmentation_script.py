"""The script from a folder of images to a segmentation model is made of commands that work."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import real_runs  # noqa: F401  # registers the model of the test
from example_scripts import EXAMPLES
from masked_pictures import write_pairs

from fcmae.__main__ import main
from fcmae.errors import DONE

pytest.importorskip("segmentation_models_pytorch", reason="the extra segmentation")

SPY = '#!/bin/sh\nprintf "%s\\n" "$@" -- >> "$CALLS"\n'
# What takes minutes, made small; last words win.
SMALL = ["--data.image_size=64", "--train.batch_size=2", "--train.steps=1", "--data.workers=0"]
SMALL += ["--train.device=cpu", "--log.tensorboard=false"]
CHANGES = {
    "pretrain": [*SMALL, "--model.name=convnextv2_speck", "--model.decoder_dim=8"],
    "finetune": [*SMALL, "--task.decoder_channels=32", "--evaluate.num_pictures=0"],
    "predict": ["--workers=0"],
    "export": [],
}


def commands_of_the_script(folder: Path, pictures: Path, runs: Path) -> list[list[str]]:
    """Return the words of every `fcmae` that the script calls, in their order."""
    spy = folder / "bin" / "fcmae"
    spy.parent.mkdir()
    spy.write_text(SPY)
    spy.chmod(0o755)
    path = f"{spy.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", EXAMPLES / "segmentation.sh", pictures, runs],
        env={**os.environ, "PATH": path, "CALLS": str(folder / "calls")},
        check=True,
    )
    calls = (folder / "calls").read_text().split("--\n")
    return [call.splitlines() for call in calls if call]


@pytest.mark.slow
def test_its_commands_pretrain_compare_predict_and_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, count in (("train", 8), ("val", 3)):
        write_pairs(tmp_path / "pasted" / part, count)
    runs = tmp_path / "runs"
    commands = commands_of_the_script(tmp_path, tmp_path / "pasted", runs)
    assert [words[0] for words in commands] == list(CHANGES)
    for words in commands:
        assert main([*words, *CHANGES[words[0]]]) in (DONE, None), words
    assert "compared with training from scratch, pretraining" in capsys.readouterr().out
    assert len(list((runs / "predictions" / "masks").glob("*.png"))) == 3
    assert (runs / "masks" / "pretrained-0" / "export" / "segmenter.onnx").is_file()
