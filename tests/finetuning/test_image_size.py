"""The image size of a fine-tuning: as its weights were trained, else by the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from masked_pictures import segment_arguments, write_pairs
from pictures_on_disk import write_pictures
from safetensors.torch import load_file, save_file
from speck import SPECK
from tiny_run import make_run

from fcmae.__main__ import main
from fcmae.errors import DONE

SMALL: dict[str, object] = {
    "data.in_chans": 1,
    "data.workers": 0,
    "model.name": SPECK,
    "train.batch_size": 4,
    "train.steps": 1,
    "log.tensorboard": "false",
    "train.device": "cpu",
}


def finetune(folder: Path, **said: object) -> int:
    """Fine-tune on folder/pictures in folder/run."""
    plain = SMALL | {"run.dir": folder / "run", "data.path": folder / "pictures"}
    given = plain | {name.replace("__", "."): value for name, value in said.items()}
    return main(["finetune", *(f"--{name}={value}" for name, value in given.items())])


def recorded_size(run: Path) -> object:
    return yaml.safe_load((run / "config.yaml").read_text())["data"]["image_size"]


def make_weights(run: Path, size: int | list[int]) -> Path:
    """Make a pretraining's run at an image size, px."""
    make_run(run, name=SPECK)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["image_size"] = size
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_pictures(tmp_path / "pictures" / name, 10, side=100, channels=1)
    return tmp_path


@pytest.mark.parametrize("size", [64, [64, 96]])
def test_it_is_what_the_weights_were_trained_on(
    folder: Path, size: int | list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder, model__weights=make_weights(folder / "weights", size)) == DONE
    assert recorded_size(folder / "run") == size
    assert f"auto: data.image_size {size}: as model.weights say." in capsys.readouterr().err


def test_from_scratch_the_pictures_say_it_and_more_of_them_change_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune(folder) == DONE
    assert "auto: data.image_size 128: the median picture has 100 px" in capsys.readouterr().err
    assert recorded_size(folder / "run") == 128
    write_pictures(folder / "pictures/a/more", 40, side=200, channels=1)
    (folder / "run/finished.txt").unlink()
    assert finetune(folder) == DONE
    assert recorded_size(folder / "run") == 128


def test_weights_of_others_leave_it_to_the_pictures_and_what_is_said_wins(folder: Path) -> None:
    run = make_weights(folder / "weights", 64)
    assert main(["export", str(run), "--output", str(folder / "own.safetensors")]) == DONE
    save_file(load_file(folder / "own.safetensors"), folder / "plain.safetensors")
    own, plain = (folder / f"{name}.safetensors" for name in ("own", "plain"))
    for number, (weights, size) in enumerate(((own, 64), (plain, 128))):
        where = {"run__dir": folder / f"run-{number}", "model__weights": weights}
        assert finetune(folder, **where) == DONE
        assert recorded_size(folder / f"run-{number}") == size
    assert finetune(folder, model__weights=own, data__image_size=32) == DONE
    assert recorded_size(folder / "run") == 32


def test_all_starts_of_a_comparison_have_the_largest(folder: Path) -> None:
    one, two = (make_weights(folder / f"at-{side}", side) for side in (64, 96))
    starts = f"{{scratch: null, one: {one}, two: {two}}}"
    assert finetune(folder, compare__starts=starts, compare__seeds=3) == DONE
    sizes = {name: recorded_size(folder / f"run/{name}-0") for name in ("scratch", "one", "two")}
    assert sizes == dict.fromkeys(sizes, 96)


def test_from_scratch_takes_what_the_pretrained_start_takes(folder: Path) -> None:
    weights = make_weights(folder / "weights", 64)
    assert finetune(folder, model__weights=weights, compare__scratch="true") == DONE
    sizes = {path.parent.name: recorded_size(path.parent) for path in folder.glob("run/*/config*")}
    assert len(sizes) == 6
    assert set(sizes.values()) == {64}


def test_a_classifier_is_evaluated_at_its_own_size(folder: Path) -> None:
    assert finetune(folder, data__image_size=40) == DONE
    shapes: list[tuple[int, ...]] = []

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if type(module).__name__ == "ConvNeXt":
            shapes.append(tuple(inputs[0].shape[-2:]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(watch)
    try:
        assert finetune(folder, evaluate__only="true") == DONE
    finally:
        hook.remove()
    assert set(shapes) == {(40, 40)}


@pytest.mark.parametrize(("size", "crops"), [(None, 224), (64, 64), (40, 64)])
def test_crops_for_masks_are_as_the_weights_know_in_whole_strides(
    tmp_path: Path, size: int | None, crops: int
) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    data = write_pairs(tmp_path / "data", 8)
    changes: dict[str, object] = {"data__image_size": "auto", "train__steps": 1}
    if size is not None:
        weights = make_weights(tmp_path / "weights", size)
        changes |= {"model__weights": weights, "model__inflate": "none"}
    assert main(segment_arguments(data, tmp_path / "run", **changes)) == DONE
    assert recorded_size(tmp_path / "run") == crops
