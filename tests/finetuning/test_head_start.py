"""A classifier that starts as a linear probe: it is the probe, fitted once, by a stated rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pictures_on_disk import write_pictures
from real_runs import assert_same_run, options, run_together
from safetensors.torch import load_file, save_file
from speck import THREE_STEPS
from undrawn import without_pictures

from fcmae.__main__ import main
from fcmae.data import ImageList, Reading
from fcmae.data.splits import open_labelled
from fcmae.errors import DONE, INTERRUPTED, MISTAKE
from fcmae.evaluation import Features, fit_linear_probe
from fcmae.evaluation.probe_classifier import normed
from fcmae.finetuning import head
from fcmae.finetuning.data import FinetuneDataset
from fcmae.finetuning.frozen import START, FrozenFeatures
from fcmae.finetuning.head import with_views
from fcmae.finetuning.recipe import (
    FEW_STEPS,
    MANY_LABELS,
    NEAR_PEAK_LR,
    PEAK_LR,
    choose_after_length,
    choose_before_length,
)
from fcmae.finetuning.setup import (
    create_augmentation,
    create_classifier,
    create_evaluation_transform,
    create_reading,
)
from fcmae.model.backbones import create_backbone
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.reading import load, parse
from fcmae.training.signals import StopRequest

UPRIGHT = {
    "augment__horizontal_flip": "false",
    "augment__vertical_flip": "false",
    "augment__rotate90": "false",
    "train__batch_size": 32,
}
STAYS = {"optim__base_lr": 0, "optim__min_lr": 0}  # no step changes a weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of three classes, and weights whose final norm is not the identity."""
    folder = tmp_path_factory.mktemp("head")
    for name, seed in (("left", 1), ("middle", 2), ("right", 3)):
        write_pictures(folder / "pictures" / name, 12, seed=seed)
    save_file(weights(), folder / "weights.safetensors")
    return folder


def weights(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return weights of an encoder without a classifier."""
    torch.manual_seed(4)
    state = create_backbone("convnextv2_speck", in_chans=3).state_dict()
    for name in ("head.norm.weight", "head.norm.bias"):
        state[name] = state[name] + 0.3 * torch.randn_like(state[name])
    return {**state, **more}


def arguments(run: Path, folder: Path, **changes: object) -> list[str]:
    plain = {"run.dir": run, "data.path": folder / "pictures", **THREE_STEPS}
    return options(plain | {"model.weights": folder / "weights.safetensors"}, changes)


def read(run: Path, folder: Path, **changes: object) -> FinetuneConfig:
    return parse(FinetuneConfig, arguments(run, folder, **changes), prog="fcmae finetune")


def finetune(run: Path, folder: Path, **changes: object) -> int:
    return main(["finetune", *arguments(run, folder, **changes)])


def head_of(run: Path) -> dict[str, torch.Tensor]:
    state = load_file(run / "export" / "classifier_last.safetensors")
    return {name: value for name, value in state.items() if name.startswith("head.fc")}


def described(
    model: Any, train: ImageList, validation: ImageList, config: FinetuneConfig
) -> tuple[Features, Features]:
    """Return what the last layer gets of training images and crops, and of validation images."""
    transform, device = create_evaluation_transform(config), torch.device("cpu")
    features = FrozenFeatures({START: model}, transform, config, device)
    known = features.of_labelled(train, config.train.seed)[START]
    look = create_augmentation(config)
    dataset = FinetuneDataset(train, look, seed=config.train.seed, reading=create_reading(config))
    seen, views = with_views(model, known, dataset, config, device)
    assert (len(seen.labels), views) == (5 * 18, 4)
    assert [*dict.fromkeys(seen.paths)] == [*known.paths]
    unknown = features.of_labelled(validation, 0)[START]
    return normed(model, seen), normed(model, unknown)


def test_from_weights_with_few_labels_the_classifier_starts_as_the_probe_of_what_it_gets(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(tmp_path / "run", folder, **STAYS) == DONE
    said = capsys.readouterr().err
    assert "auto: model.head_start probe: " in said
    assert "a linear probe of the start's features of 18 labelled images, 4 crops of each" in said
    config = load(FinetuneConfig, tmp_path / "run" / "config.yaml")
    assert config.model.head_start == "probe"
    train, validation = open_labelled(config.data, config.train.seed)
    model, _ = create_classifier(config, ("left", "middle", "right"))
    model.eval()
    known, unknown = described(model, train, validation, config)
    probe = fit_linear_probe(known.vectors, known.labels)
    expected = unknown.vectors.double() @ probe.weight.T + probe.bias
    model.load_state_dict(load_file(tmp_path / "run" / "export" / "classifier_last.safetensors"))
    with torch.no_grad():
        found = model.head.fc(unknown.vectors)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    assert len(set(expected.argmax(dim=1).tolist())) > 1


def test_what_is_said_wins_over_a_classifier_that_the_weights_bring(
    folder: Path, tmp_path: Path
) -> None:
    assert finetune(tmp_path / "first", folder, model__head_start="random", **STAYS) == DONE
    again = {"model__weights": tmp_path / "first", **STAYS}
    assert finetune(tmp_path / "kept", folder, **again) == DONE
    assert finetune(tmp_path / "probed", folder, model__head_start="probe", **again) == DONE
    first, kept, probed = (head_of(tmp_path / name) for name in ("first", "kept", "probed"))
    assert torch.equal(kept["head.fc.weight"], first["head.fc.weight"])
    assert not torch.allclose(probed["head.fc.weight"], first["head.fc.weight"])


def test_the_number_of_reading_processes_changes_no_bit_of_a_probe(
    folder: Path, tmp_path: Path
) -> None:
    assert finetune(tmp_path / "none", folder) == DONE
    assert finetune(tmp_path / "some", folder, data__workers=2) == DONE
    for name, value in head_of(tmp_path / "none").items():
        assert torch.equal(head_of(tmp_path / "some")[name], value)


def test_what_is_said_wins_and_is_drawn_as_before(folder: Path, tmp_path: Path) -> None:
    assert finetune(tmp_path / "run", folder, model__head_start="random", **STAYS) == DONE
    config = load(FinetuneConfig, tmp_path / "run" / "config.yaml")
    model, _ = create_classifier(config, ("left", "middle", "right"))
    assert torch.equal(head_of(tmp_path / "run")["head.fc.weight"], model.head.fc.weight)


def stopped(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "name", property(lambda self: "SIGTERM"), raising=False)
        assert finetune(run, folder, **changes) == INTERRUPTED


def test_a_stopped_run_goes_on_bit_for_bit_without_another_probe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finetune(tmp_path / "whole", folder, ema__decay=0.9) == DONE
    stopped(tmp_path / "stopped", folder, monkeypatch, ema__decay=0.9)
    monkeypatch.delattr(head, "fit_linear_probe")
    assert finetune(tmp_path / "stopped", folder, ema__decay=0.9) == DONE
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_of_before_the_setting_goes_on_with_the_classifier_that_it_drew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    assert finetune(tmp_path / "whole", folder, model__head_start="random") == DONE
    stopped(old, folder, monkeypatch, model__head_start="random")
    recorded = yaml.safe_load((old / "config.yaml").read_text())
    del recorded["model"]["head_start"]
    (old / "config.yaml").write_text(yaml.safe_dump(recorded))
    assert finetune(old, folder) == DONE
    assert_same_run(old, tmp_path / "whole")


@pytest.mark.ddp
def test_every_process_starts_with_the_probe_of_the_main_one(folder: Path, tmp_path: Path) -> None:
    changes = {"train__batch_size": 2, **STAYS}
    assert finetune(tmp_path / "one", folder, train__accumulate=2, **changes) == DONE
    words = ["finetune", *arguments(tmp_path / "two", folder, **changes)]
    log = tmp_path / "log"
    assert run_together(words, log, 2, before=without_pictures) == [DONE, DONE], log.read_text()
    for name, value in head_of(tmp_path / "one").items():
        torch.testing.assert_close(head_of(tmp_path / "two")[name], value)


def images(labels: int, classes: int = 2) -> ImageList:
    names = tuple(f"class {number}" for number in range(classes))
    paths = tuple(f"{number}.png" for number in range(labels))
    return ImageList(paths, tuple(number % classes for number in range(labels)), names)


def with_classifier(folder: Path) -> dict[str, object]:
    """Write weights with a classifier of the two classes of `images`."""
    size = weights()["head.norm.weight"].shape[0]
    layer = {"head.fc.weight": torch.ones(2, size), "head.fc.bias": torch.ones(2)}
    named = {"classes": json.dumps(["class 0", "class 1"])}
    save_file(weights(**layer), folder / "classifier.safetensors", metadata=named)
    return {"model__weights": folder / "classifier.safetensors"}


Given = Callable[[Path], dict[str, object]]
HIGH = {"optim__base_lr": PEAK_LR * 256 / 32}
LOW = {"optim__base_lr": NEAR_PEAK_LR * 256 / 32}
RULES: list[tuple[Given, ImageList, int, str, str]] = [
    (lambda folder: {}, images(40), FEW_STEPS - 1, "probe", "fewer than 100 steps"),
    (lambda folder: LOW, images(40), FEW_STEPS - 1, "probe", "fewer than 100 steps"),
    (lambda folder: {}, images(40), FEW_STEPS, "random", "100 steps or more"),
    (lambda folder: HIGH, images(40), 50, "random", "a peak rate of 0.0005, would undo a probe"),
    (lambda folder: {}, images(MANY_LABELS), 50, "random", "20,000 labels"),
    (lambda folder: {}, images(200, 51), 50, "random", "more than 50 classes"),
    (lambda folder: {"model__weights": "null"}, images(40), 50, "random", "from scratch"),
    (lambda folder: {"model__head_init_scale": 0.5}, images(40), 50, "random", "init_scale"),
    (with_classifier, images(40), 50, "random", "bring a classifier of these classes"),
]


@pytest.mark.parametrize(("given", "train", "steps", "start", "why"), RULES)
def test_short_runs_from_weights_start_as_a_probe_at_a_rate_that_keeps_it(
    folder: Path, tmp_path: Path, given: Given, train: ImageList, steps: int, start: str, why: str
) -> None:
    changes = given(tmp_path)
    config = read(tmp_path / "run", folder, **UPRIGHT, **changes)
    choices = choose_before_length(config, train, Reading(in_chans=3), "convnextv2_speck")
    choose_after_length(choices, steps, 32)
    assert choices.config.model.head_start == start
    (told,) = [line for line in choices.lines if "model.head_start" in line]
    assert told.startswith(f"auto: model.head_start {start}: ")
    assert why in told
    peak = choices.config.optim.base_lr * 32 / 256
    if "optim__base_lr" not in changes:
        assert peak == pytest.approx(NEAR_PEAK_LR if start == "probe" else PEAK_LR)


def test_a_long_run_that_is_told_to_start_as_a_probe_has_the_rate_that_keeps_it(
    folder: Path, tmp_path: Path
) -> None:
    config = read(tmp_path / "run", folder, model__head_start="probe", **UPRIGHT)
    choices = choose_before_length(config, images(40), Reading(in_chans=3), "convnextv2_speck")
    choose_after_length(choices, 10 * FEW_STEPS, 32)
    assert choices.config.optim.base_lr * 32 / 256 == pytest.approx(NEAR_PEAK_LR)


@pytest.mark.parametrize(("start", "train"), [("random", 40), ("probe", MANY_LABELS)])
def test_no_rule_changes_a_start_that_is_said(
    folder: Path, tmp_path: Path, start: str, train: int
) -> None:
    config = read(tmp_path / "run", folder, model__head_start=start, **UPRIGHT)
    choices = choose_before_length(config, images(train), Reading(in_chans=3), "convnextv2_speck")
    choose_after_length(choices, 50 if start == "random" else FEW_STEPS, 32)
    assert choices.config.model.head_start == start
    assert not [line for line in choices.lines if "model.head_start" in line]


def test_a_probe_from_scratch_is_refused_in_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model__weights": "null", "model__head_start": "probe"}
    assert finetune(tmp_path / "run", folder, **changes) == MISTAKE
    said = capsys.readouterr().err
    assert "model.head_start" in said
    assert "weights whose features can be probed" in said
    assert not (tmp_path / "run").exists()


def features(labels: list[int]) -> Features:
    size = weights()["head.norm.weight"].shape[0]
    vectors = torch.randn(len(labels), size, generator=torch.Generator().manual_seed(1))
    return Features(vectors, torch.tensor(labels), tuple(map(str, range(len(labels)))))


def test_a_class_without_an_image_keeps_its_row_and_what_no_probe_can_be_fitted_to_all() -> None:
    model = create_backbone("convnextv2_speck", in_chans=3, num_classes=3)
    state = head.probe_state(model, features([0, 2, 0, 2]))
    assert state is not None
    assert torch.equal(state["weight"][1], model.head.fc.weight[1])
    assert not torch.equal(state["weight"][2], model.head.fc.weight[2])
    assert head.probe_state(model, features([1, 1])) is None
    broken = features([0, 1])
    broken.vectors[0, 0] = torch.nan
    assert head.probe_state(model, broken) is None
