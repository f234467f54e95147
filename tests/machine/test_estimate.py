"""What a run would take on hardware that is not here, counted by hand and said as estimated."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import make_config

from fcmae.__main__ import main
from fcmae.errors import DONE, MISTAKE
from fcmae.machine.cost import flops_per_image
from fcmae.machine.plan.estimate import estimate
from fcmae.machine.plan.roofline import HARDWARE, count_stages, num_parameters

H100 = HARDWARE["h100"]
RUN = ["--images", "1300000", "--epochs", "800"]


def test_operations_are_those_counted_from_the_model(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    stages = count_stages(config, batch=3)
    counted = sum(stage.flops for stage in stages) / 3
    # The count of the model knows neither hidden heads nor skipped projections.
    assert 0.75 * flops_per_image(config) < counted < flops_per_image(config)
    twice = count_stages(config, batch=6)
    assert [b.flops for b in twice] == [2 * a.flops for a in stages]
    assert [b.bytes for b in twice[:-1]] == [2 * a.bytes for a in stages[:-1]]
    assert twice[-1] == stages[-1]  # the optimizer's


def test_a_stage_takes_the_longer_of_products_and_bytes(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    for stage in count_stages(config, batch=8):
        products, moved = stage.flops / 800e12, stage.bytes / 3.3e12
        assert stage.seconds(H100) == max(products, moved)
        assert stage.bound(H100) == ("products" if products >= moved else "bytes")


def test_more_gpus_take_less_time_and_exchange_gradients(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    one, eight = (estimate(config, H100, gpus, 100_000, 10) for gpus in (1, 8))
    assert one.exchanged_bytes == 0
    assert eight.exchanged_bytes == 2 * 7 / 8 * 4 * num_parameters(config)
    assert one.total_seconds / 8 < eight.total_seconds < one.total_seconds
    assert one.memory_bytes == eight.memory_bytes


def test_the_command_says_that_it_estimates_and_what_it_assumes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--for", "h100", "--gpus", "8", *RUN, "--model.name", "convnextv2_tiny"]
    assert main(["plan", *words, "--train.batch_size", "512"]) == DONE
    shown = capsys.readouterr().out
    assert shown.startswith("estimated, not measured: 8 x NVIDIA H100 80 GB, 1300000 images")
    for words_of_it in (
        "assumptions: products at 800 TFLOP/s, memory at 3.3 TB/s",
        "GiB per GPU (estimated)",
        "of the step, half of it hidden",
        "encoder, stage 4",
    ):
        assert words_of_it in shown
    assert main(["plan", "--for", "l40s", *RUN, "--train.batch_size", "100000"]) == DONE
    assert "does not fit into the memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "h101", *RUN], "--for: got 'h101', expected one of a100, h100, h200, l40s"),
        (["--for", "h100"], "say how long the run is, such as --images 1300000 --epochs 800"),
        (["--for", "h100", *RUN, "--gpus", "0"], "--gpus: got '0', expected a whole number"),
        (["--for", "h100", "--images", "9", "--epochs", "x"], "--epochs: got 'x', expected a"),
        (["--for", "h100", *RUN, "--mask.ratoi", "1"], "Did you mean mask.ratio"),
        (["--for"], "--for has no value"),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == MISTAKE
    assert message in capsys.readouterr().err
