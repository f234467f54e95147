"""Samples depend on (seed, epoch, index) alone, and broken files have stand-ins."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    collate,
    find_images,
    sample_seed,
    seeded,
)
from fcmae.errors import DataError
from fcmae.model.masking import draw_visible, num_visible_patches


def write_images(folder: Path, good: int, broken: int = 0) -> str:
    """Write `good` noise pictures and `broken` unusable ones into two class folders."""
    rng = np.random.default_rng(0)
    for number in range(good + broken):
        path = folder / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number < good:
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        else:
            path.write_bytes(b"no picture")
    return str(folder)


def make_dataset(folder: str, seed: int = 0, **options: Any) -> PretrainDataset:
    images = find_images(folder)
    augmentation = PretrainAugmentation((32, 48))
    return PretrainDataset(
        images,
        augmentation,
        seed=seed,
        reading=Reading(in_chans=3, **options),
        num_patches=6,
        mask_ratio=0.6,
    )


def assert_equal(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(value, second[name], rtol=0, atol=0)
        else:
            assert value == second[name]


def test_a_sample_has_the_documented_parts(tmp_path: Path) -> None:
    dataset = make_dataset(write_images(tmp_path, 4))
    sample = dataset[(3, 2)]
    assert sample["image"].shape == (3, 32, 48)
    assert sample["image"].dtype == torch.uint8
    assert sample["visible"].dtype == torch.long
    assert sample["visible"].shape == (num_visible_patches(6, 0.6),)
    assert sample["visible"].tolist() == sorted(set(sample["visible"].tolist()))
    assert sample["label"] == 1
    assert (sample["index"], sample["skipped"]) == (2, [])
    assert sample["path"] == dataset.path_of((3, 2)) == dataset.images.paths[2]
    assert len(dataset) == 4


def test_a_sample_does_not_depend_on_history_or_global_generators(tmp_path: Path) -> None:
    dataset = make_dataset(write_images(tmp_path, 4))
    with seeded(1):
        first = dataset[(5, 1)]
    with seeded(2):
        before = torch.get_rng_state()
        for key in ((0, 0), (5, 3), (4, 1)):
            dataset[key]
        again = dataset[(5, 1)]
        assert torch.equal(before, torch.get_rng_state())
    assert_equal(first, again)


@pytest.mark.parametrize("change", ["epoch", "index", "seed"])
def test_crop_and_mask_depend_on_seed_epoch_and_index(change: str, tmp_path: Path) -> None:
    folder = write_images(tmp_path, 2)
    samples = []
    for value in range(8):
        key = (value if change == "epoch" else 0, value % 2 if change == "index" else 0)
        samples.append(make_dataset(folder, seed=value if change == "seed" else 0)[key])
    expected = 2 if change == "index" else 8
    assert len({sample["image"].numpy().tobytes() for sample in samples}) == expected
    assert len({tuple(sample["visible"].tolist()) for sample in samples}) > expected // 4


def test_the_mask_can_be_drawn_from_the_key_alone(tmp_path: Path) -> None:
    sample = make_dataset(write_images(tmp_path, 2), seed=9)[(4, 1)]
    rng = torch.Generator().manual_seed(sample_seed(9, "mask", 4, 1))
    assert torch.equal(sample["visible"], draw_visible(1, 6, 0.6, rng)[0])


def test_a_broken_file_has_a_stand_in_that_depends_on_the_key(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 8, broken=8)
    dataset = make_dataset(folder)
    broken = [i for i, path in enumerate(dataset.images.paths) if int(Path(path).stem) >= 8]
    samples = [dataset[(epoch, broken[0])] for epoch in range(12)]
    assert len({sample["path"] for sample in samples}) > 3
    for epoch, sample in enumerate(samples):
        assert sample["index"] == broken[0]
        assert sample["skipped"][0] == (
            dataset.images.paths[broken[0]],
            "no picture in a format that can be read here",
        )
        used = dataset.images.paths.index(sample["path"])
        assert used not in broken
        assert dataset.images.labels is not None
        assert sample["label"] == dataset.images.labels[used]
        assert_equal(sample, make_dataset(folder)[(epoch, broken[0])])


def test_a_file_that_vanishes_during_the_run_is_replaced(tmp_path: Path) -> None:
    dataset = make_dataset(write_images(tmp_path, 4))
    before = dataset[(0, 1)]
    Path(dataset.images.paths[1]).unlink()
    after = dataset[(0, 1)]
    assert after["skipped"] == [(before["path"], "the file does not exist (any more)")]
    assert torch.equal(after["visible"], before["visible"])


def test_a_set_of_broken_files_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    dataset = make_dataset(write_images(tmp_path, 0, broken=3))
    with pytest.raises(DataError, match=r"11 images in a row .*000\.png': no picture .*Remove or"):
        dataset[(0, 0)]


def test_value_range_reaches_the_decoder(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((40, 40, 3), 3000, dtype=np.uint16))
    sample = make_dataset(str(tmp_path), value_range=(0, 4000))[(0, 0)]
    torch.testing.assert_close(sample["image"], torch.full((3, 32, 48), 0.75))
    transform = EvaluationTransform((32, 32), mean=(0.5,) * 3, std=(0.25,) * 3)
    evaluated = EvaluationDataset(
        find_images(str(tmp_path)), transform, reading=Reading(in_chans=3, value_range=(0, 4000))
    )
    torch.testing.assert_close(evaluated[0]["image"], torch.ones(3, 32, 32))


def test_collate_stacks_and_gathers_what_was_skipped(tmp_path: Path) -> None:
    dataset = make_dataset(write_images(tmp_path, 3, broken=3))
    samples = [dataset[(0, index)] for index in range(6)]
    batch = collate(samples)
    assert batch["image"].shape == (6, 3, 32, 48)
    assert batch["visible"].shape == (6, 2)
    assert batch["index"].tolist() == list(range(6))
    assert batch["label"].tolist() == [sample["label"] for sample in samples]
    assert batch["path"] == [sample["path"] for sample in samples]
    assert batch["skipped"] == [problem for sample in samples for problem in sample["skipped"]]
    assert len(batch["skipped"]) >= 3


def make_evaluation(folder: str) -> EvaluationDataset:
    transform = EvaluationTransform((32, 24), mean=(0.5,) * 3, std=(0.25,) * 3)
    return EvaluationDataset(find_images(folder), transform, reading=Reading(in_chans=3))


def test_evaluation_leaves_out_broken_files_and_reports_them(tmp_path: Path) -> None:
    dataset = make_evaluation(write_images(tmp_path, 4, broken=2))
    names = [Path(path).stem for path in dataset.images.paths]
    assert names == ["000", "002", "004", "001", "003", "005"]
    batch = collate([dataset[index] for index in range(6)])
    assert batch["index"].tolist() == [0, 1, 3, 4]
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["image"].shape == (4, 3, 32, 24)
    assert [Path(path).stem for path, _ in batch["skipped"]] == ["004", "005"]
    assert "visible" not in batch


def test_a_batch_of_broken_files_has_no_images_but_their_shape(tmp_path: Path) -> None:
    dataset = make_evaluation(write_images(tmp_path, 2, broken=2))
    batch = collate([dataset[1], dataset[3]])
    assert batch["image"].shape == (0, 3, 32, 24)
    assert batch["label"].shape == batch["index"].shape == (0,)
    assert len(batch["skipped"]) == 2


def test_images_without_classes_have_label_minus_one(tmp_path: Path) -> None:
    folder = write_images(tmp_path, 1)
    assert make_dataset(folder)[(0, 0)]["label"] == -1
    assert make_evaluation(folder)[0]["label"] == -1
