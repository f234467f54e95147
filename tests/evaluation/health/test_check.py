"""Looks at the health of models: what is measured, and that nothing else changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from torch import Tensor

from fcmae.__main__ import main
from fcmae.data import ImageList
from fcmae.data.recorded import read_paths
from fcmae.data.splits import hold_out
from fcmae.errors import DONE
from fcmae.evaluation.health import HealthCheck, draw_health
from fcmae.evaluation.health.measures import channel_diversity, rank_me
from fcmae.model.autoencoder import FCMAE
from fcmae.model.masking import is_masked_from_visible
from fcmae.runs.loading import load_run
from fcmae.runs.metrics import read_metrics
from fcmae.settings.pretrain import HealthConfig


def make_model(name: str = "convnextv2_atto", **settings: Any) -> FCMAE:
    sizes = {"image_size": (64, 96), "in_chans": 1, "decoder_dim": 8, "mask_ratio": 0.5}
    model = FCMAE(name, **{**sizes, **settings})
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.05)
    return model


def make_images(model: FCMAE, count: int = 10) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randn(count, model.in_chans, *model.image_size, generator=rng)


def image_list(count: int) -> ImageList:
    paths = tuple(f"{number}.png" for number in range(count))
    return ImageList(paths, None, None, None, (("broken.png", "no picture"),))


@pytest.mark.parametrize(
    ("count", "wanted", "checks", "held"),
    [(79, 32, 5, 0), (80, 32, 5, 4), (100, 32, 5, 5), (2000, 32, 5, 32), (2000, 3, 5, 0),
     (2000, 32, 0, 0), (100, 0, 5, 0)],
)  # fmt: skip
def test_at_most_a_twentieth_is_held_out_and_no_less_than_four(
    count: int, wanted: int, checks: int, held: int
) -> None:
    images = image_list(count)
    training, held_out = hold_out(images, HealthConfig(checks=checks, images=wanted), seed=0)
    assert len(held_out) == held
    assert sorted(training.paths + held_out.paths) == sorted(images.paths)
    assert training.problems == images.problems
    assert held_out.problems == ()


def test_the_seed_decides_what_is_held_out() -> None:
    images, config = image_list(200), HealthConfig(images=8)
    first, again, other = (hold_out(images, config, seed)[1].paths for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.fixture(scope="module")
def model() -> FCMAE:
    return make_model()


@pytest.fixture(scope="module")
def measured(model: FCMAE) -> dict[str, Any]:
    return HealthCheck(model, make_images(model), seed=3).measure()


def test_rank_and_diversity_are_those_of_all_images_at_once(
    model: FCMAE, measured: dict[str, Any]
) -> None:
    """Ten images are looked at in two batches."""
    maps: dict[str, Tensor] = {}
    block = model.encoder.stages[2].blocks[1]
    hook = block.mlp.grn.register_forward_hook(lambda _, __, out: maps.update(out=out))
    model.eval()
    with torch.no_grad():
        features = model.encoder.forward_features(make_images(model)).mean(dim=(2, 3))
    hook.remove()
    assert measured["health/rank_me"] == pytest.approx(rank_me(features), rel=1e-4)
    place = 2 + 2 + 1  # blocks of stages 0 and 1, then the second of stage 2
    found = measured["health/diversity_by_layer"][place]
    assert maps["out"].shape == (10, 4 * 160, 4, 6)  # timm's small models have channels first
    expected = channel_diversity(maps["out"].permute(0, 2, 3, 1))
    assert found == pytest.approx(expected, abs=1e-5)
    stage = measured["health/diversity_by_layer"][4:10]
    assert measured["health/diversity_stage_2"] == pytest.approx(sum(stage) / 6, abs=2e-6)


def test_the_loss_at_each_ratio_is_that_of_fixed_masks(
    model: FCMAE, measured: dict[str, Any]
) -> None:
    check = HealthCheck(model, make_images(model), seed=3)
    losses = {name: value for name, value in measured.items() if "loss_at" in name}
    # 0.9 of six patches leaves none visible, so that it is left out
    assert list(losses) == ["health/loss_at_0.3", "health/loss_at_0.5", "health/loss_at_0.6"]
    for ratio, visible in check.visible.items():
        with torch.no_grad():
            expected = float(model.eval()(make_images(model), visible).loss)
        assert losses[f"health/loss_at_{ratio:g}"] == pytest.approx(expected, rel=1e-5)
    assert measured["health/loss"] == losses["health/loss_at_0.5"]
    assert check.measure() == measured


def test_norms_of_grn_are_means_over_the_blocks_of_a_stage(
    model: FCMAE, measured: dict[str, Any]
) -> None:
    blocks = model.encoder.stages[1].blocks
    gamma = [math.sqrt(sum(w**2 for w in block.mlp.grn.weight.tolist())) for block in blocks]
    beta = [math.sqrt(sum(w**2 for w in block.mlp.grn.bias.tolist())) for block in blocks]
    assert measured["health/grn_gamma_stage_1"] == pytest.approx(sum(gamma) / 2, rel=1e-4)
    assert measured["health/grn_beta_stage_1"] == pytest.approx(sum(beta) / 2, rel=1e-4)


def test_the_losses_to_beat_are_of_the_runs_own_masks(model: FCMAE) -> None:
    check = HealthCheck(model, make_images(model), seed=3)
    trivial = check.trivial_losses()
    assert trivial["health/loss_patch_mean"] == pytest.approx(1 - 1 / 32**2, rel=1e-4)
    # Noise tells nothing about its surroundings: copying a patch costs twice its variance.
    assert trivial["health/loss_nearest_patch"] == pytest.approx(2, rel=0.05)
    assert trivial["health/loss_blurred_surroundings"] == pytest.approx(1, rel=0.1)
    assert int(is_masked_from_visible(check.visible[0.5], 6).sum()) == 10 * 3


def test_an_encoder_whose_channels_all_say_the_same_has_no_diversity_and_rank_one() -> None:
    model = make_model()
    with torch.no_grad():
        for stage in model.encoder.stages:
            for block in stage.blocks:
                block.mlp.fc1.weight.zero_()
                block.mlp.fc1.bias.fill_(1.0)
                block.mlp.grn.bias.zero_()
                block.mlp.grn.weight.fill_(0.5)
        last = model.encoder.stages[3].downsample[1]
        last.weight.zero_()  # nothing of the image comes through
    values = HealthCheck(model, make_images(model), seed=0).measure()
    assert values["health/diversity_by_layer"] == pytest.approx([0.0] * 12, abs=1e-6)
    assert values["health/rank_me"] == pytest.approx(1, abs=1e-3)
    for stage in range(4):
        assert values[f"health/saturated_stage_{stage}"] == 1
        assert values[f"health/dead_stage_{stage}"] == 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("convnext_atto", {}),
        ("convnext_tiny", {"in_chans": 3, "image_size": (64, 64)}),
        ("convnextv2_atto", {"in_chans": 5}),
        ("convnextv2_atto", {"patch_size": 64, "image_size": (64, 128)}),
        ("convnextv2_atto", {"normalize_targets": False}),
        ("convnextv2_atto", {"grn_scope": "batch"}),
        ("convnextv2_atto", {"backend": "masked_dense"}),
    ],
)
def test_every_kind_of_model_is_measured(name: str, settings: dict[str, Any]) -> None:
    model = make_model(name, **settings)
    values = HealthCheck(model, make_images(model, 4), seed=0).measure()
    layers = values.pop("health/diversity_by_layer")
    assert isinstance(layers, list)
    assert len(layers) == sum(len(stage.blocks) for stage in model.encoder.stages)
    assert all(0 < value < 1 for value in layers)
    assert all(math.isfinite(value) for value in values.values())
    assert ("health/grn_gamma_stage_0" in values) == name.startswith("convnextv2")


def test_a_look_leaves_modes_weights_hooks_and_generators_alone() -> None:
    model = make_model(drop_path=0.2)
    model.encoder.set_grad_checkpointing(True)
    model.train()
    model.encoder.stages[1].eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [part.training for part in model.modules()]
    state = torch.get_rng_state()
    check = HealthCheck(model, make_images(model, 4), seed=0)
    assert check.measure() == check.measure()
    check.trivial_losses()
    torch.testing.assert_close(torch.get_rng_state(), state, rtol=0, atol=0)
    assert [part.training for part in model.modules()] == modes
    assert not any(part._forward_hooks for part in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, msg=name)


def test_features_that_are_not_finite_are_logged_as_null_and_not_raised(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.encoder.stages[2].blocks[0].mlp.fc1.weight.fill_(math.nan)
    values = HealthCheck(model, make_images(model, 4), seed=0).measure()
    layers: Any = values["health/diversity_by_layer"]
    assert layers[:4] == pytest.approx(layers[:4])
    assert layers[4:] == [None] * 8
    assert math.isnan(float(values["health/rank_me"]))  # type: ignore[arg-type]
    draw_health([{"step": 0, **values}, {"step": 1, "health/loss": None}], 2, tmp_path / "h.png")
    assert (tmp_path / "h.png").stat().st_size > 1000


def pretrain(run: Path, data: Path, checks: int) -> None:
    arguments = [
        *("pretrain", "--run.dir", str(run), "--data.path", str(data), "--data.workers", "0"),
        *("--model.name", "convnextv2_atto", "--model.decoder_dim", "8", "--train.steps", "4"),
        *("--data.image_size", "64", "--data.in_chans", "1", "--train.batch_size", "4"),
        *("--model.drop_path", "0.3", "--log.tensorboard", "false", "--log.num_pictures", "1"),
        *("--health.checks", str(checks), "--evaluate.draws", "0"),
    ]
    assert main(arguments) == DONE


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run, with one look and with four."""
    folder = tmp_path_factory.mktemp("health")
    write_pictures(folder / "pictures", 80, channels=1)
    for checks in (1, 4):
        pretrain(folder / str(checks), folder / "pictures", checks)
    return {checks: folder / str(checks) for checks in (1, 4)}


def test_looking_changes_no_weight(runs: dict[int, Path]) -> None:
    once, often = (load_run(runs[checks]).model.state_dict() for checks in (1, 4))
    for name, value in once.items():
        torch.testing.assert_close(often[name], value, rtol=0, atol=0, msg=name)


def test_a_run_logs_its_checks_with_the_losses_to_beat_first_and_draws_them(
    runs: dict[int, Path],
) -> None:
    for checks, steps in ((1, [0, 4]), (4, [0, 1, 2, 3, 4])):
        lines = [x for x in read_metrics(runs[checks] / "metrics.jsonl") if "health/loss" in x]
        assert [line["step"] for line in lines] == steps
        assert ["health/loss_patch_mean" in line for line in lines] == [True] + [False] * checks
        assert len(lines[-1]["health/diversity_by_layer"]) == 12
        assert (runs[checks] / "health.png").stat().st_size > 10_000


def test_no_held_out_image_is_trained_on(runs: dict[int, Path]) -> None:
    held, trained = (set(read_paths(runs[4] / name)) for name in ("held_out.jsonl", "images.jsonl"))
    assert len(held) == 4
    assert len(trained) == 76
    assert not held & trained
