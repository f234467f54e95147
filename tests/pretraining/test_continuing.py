"""Going on from the weights of another run: where the loss starts, and what is told of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures_on_disk import write_pictures
from speck import SPECK

from fcmae.__main__ import main
from fcmae.errors import DONE
from fcmae.evaluation.health import first_epoch
from fcmae.evaluation.health.drift import NAME
from fcmae.pretraining.task import Pretraining, open_data
from fcmae.reports.run import run_document
from fcmae.runs.metrics import read_metrics
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import load

pytestmark = pytest.mark.usefixtures("undrawn")

NAMES = [NAME.format(stage) for stage in range(4)]


def words(run: Path, data: Path, *extra: str) -> list[str]:
    return [
        *("pretrain", "--run.dir", str(run), "--data.path", str(data), "--data.image_size", "64"),
        *("--data.in_chans", "1", "--data.workers", "0", "--model.name", SPECK),
        *("--model.decoder_dim", "16", "--train.batch_size", "40", "--train.steps", "4"),
        *("--optim.base_lr", "3e-3", "--log.tensorboard", "false", "--evaluate.draws", "0"),
        *("--health.checks", "1", *extra),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 84, channels=1)
    return folder


@pytest.fixture(scope="module")
def first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "first"
    assert main(words(run, data)) == DONE
    return run


def health(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line for line in read_metrics(run / "metrics.jsonl")
            if "health/loss" in line}  # fmt: skip


def test_a_continued_run_starts_where_the_other_ended_and_tells_of_its_first_epoch_and_drift(
    first: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    start = ["--model.init_from", str(first), "--model.init_decoder_from", str(first)]
    assert main(words(run, data, *start, "--optim.layer_decay", "0.9")) == DONE
    checks = health(run)
    assert checks[0]["health/loss"] == pytest.approx(health(first)[4]["health/loss"], rel=0.01)
    assert list(checks) == [0, 2, 4]  # 80 images are two steps of 40
    assert checks[2]["health/start_loss"] == checks[0]["health/loss"]
    assert [checks[0][name] for name in NAMES] == [1.0] * 4
    assert all(checks[4][name] < 1.0 for name in NAMES)
    told = first_epoch(list(checks.values()), has_decoder=True)
    assert told.startswith("after the first epoch (step 2) the held-out loss is ")
    assert told in capfd.readouterr().err
    in_short = run_document(run).sections[0].blocks[0]
    assert any(told[1:] in item for item in getattr(in_short, "items", ()))
    assert (run / "start_features.safetensors").is_file()


def test_a_run_from_random_weights_has_no_start_to_be_compared_with(first: Path) -> None:
    assert list(health(first)) == [0, 4]
    assert not set(NAMES) & set(health(first)[4])
    assert not (first / "start_features.safetensors").exists()


@pytest.mark.parametrize(
    ("loss", "has_decoder", "said"),
    [
        (0.41, True, "0.4100, below the 0.4200 of the start."),
        (0.41, False, "whose decoder was drawn: that falls in any case"),
        (0.42, True, "0.4200, not below the 0.4200 of the start: so far the run undoes what"),
    ],
)
def test_the_loss_after_the_first_epoch_is_put_beside_the_starts(
    loss: float, has_decoder: bool, said: str
) -> None:
    lines = [{"step": 0, "health/loss": 0.42}, {"step": 40, "loss": 1.0},
             {"step": 41, "health/loss": loss, "health/start_loss": 0.42}]  # fmt: skip
    assert said in first_epoch(lines, has_decoder=has_decoder)
    assert first_epoch(lines[:2], has_decoder=has_decoder) == ""


def test_early_layers_learn_more_slowly_where_layer_decay_says_so(first: Path) -> None:
    config = load(PretrainConfig, first / "config.yaml")
    plain = Pretraining(config, open_data(config)).parameter_groups()
    assert [group["lr_scale"] for group in plain] == [1.0, 1.0]
    object.__setattr__(config.optim, "layer_decay", 0.5)
    task = Pretraining(config, open_data(config))
    scale = {
        id(parameter): group["lr_scale"]
        for group in task.parameter_groups()
        for parameter in group["params"]
    }
    assert set(scale) == {id(p) for p in task.model.parameters() if p.requires_grad}
    by_name = {name: scale.get(id(p)) for name, p in task.model.named_parameters()}
    assert by_name["encoder.stem.0.weight"] == 0.5**4  # of a block in each stage
    assert by_name["encoder.stages.3.blocks.0.mlp.fc1.weight"] == 0.5
    assert by_name["decoder.mask_token"] == by_name["decoder.head.weight"] == 1.0
