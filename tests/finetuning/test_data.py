"""Labelled images for fine-tuning: which are drawn, and what is changed in them at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pictures_on_disk import write_pictures
from PIL import Image

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    ImageList,
    Reading,
    decode_image,
    sample_seed,
    seeded,
)
from fcmae.data.parts import cut
from fcmae.data.splits import draw_per_class, open_labelled
from fcmae.errors import ConfigError
from fcmae.finetuning.data import FinetuneAugmentation, FinetuneDataset
from fcmae.settings.finetune import AugmentConfig, FinetuneDataConfig

IMAGES = ImageList(
    paths=tuple(f"{number}.png" for number in range(20)),
    labels=tuple(int(number >= 12) for number in range(20)),
    classes=("left", "right"),
)


def changes(**settings: Any) -> AugmentConfig:
    """Return random changes in which nothing is left to a rule."""
    plain: dict[str, Any] = {"crop_scale": (0.08, 1.0), "horizontal_flip": True}
    plain |= {"vertical_flip": False, "rotate90": False, "reprob": 0.25, "smoothing": 0.1}
    return AugmentConfig(**{**plain, **settings})


PLAIN = changes(rand_augment=None, reprob=0.0)


def random_image(channels: int, seed: int = 0, height: int = 40, width: int = 50) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=rng, dtype=torch.uint8)


def test_draw_takes_as_many_of_each_class_and_depends_on_the_seed() -> None:
    drawn = draw_per_class(IMAGES, 3, seed=1)
    assert drawn.labels == (0, 0, 0, 1, 1, 1)
    assert drawn.paths == draw_per_class(IMAGES, 3, seed=1).paths
    assert drawn.paths != draw_per_class(IMAGES, 3, seed=2).paths
    assert draw_per_class(IMAGES, 8, seed=1).labels == (0,) * 8 + (1,) * 8


def test_draw_of_more_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"class 'right' has 8 training images"):
        draw_per_class(IMAGES, 9, seed=1)


def test_held_back_images_are_the_same_for_every_training_seed(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b")):
        write_pictures(tmp_path / name, 8, seed=seed, side=8)
    data = FinetuneDataConfig(path=str(tmp_path), val_share=0.25, train_per_class=2)
    first, second = open_labelled(data, seed=0), open_labelled(data, seed=5)
    assert first[1].paths == second[1].paths
    assert first[0].paths != second[0].paths
    assert not set(first[0].paths) & set(first[1].paths)


def test_validation_folder_is_used_whole(tmp_path: Path) -> None:
    for part, count in (("one", 5), ("two", 3)):
        for name in ("a", "b"):
            write_pictures(tmp_path / part / name, count, side=8)
    data = FinetuneDataConfig(path=str(tmp_path / "one"), val_path=str(tmp_path / "two"))
    train, validation = open_labelled(data, seed=0)
    assert (len(train), len(validation)) == (10, 6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m10", "augmix-m5-w2", "v0"])
def test_policies_of_any_strength_work_on_grey_and_colour(channels: int, policy: str) -> None:
    """timm's strongest posterising asks Pillow for 0 bits, which it refuses."""
    settings = changes(rand_augment=policy)
    change = FinetuneAugmentation(settings, (24, 16), mean=(0.5,) * channels, std=(0.2,) * channels)
    image = random_image(channels)
    results = []
    for seed in range(60):
        with seeded(seed):
            results.append(change(cut(image, change.choose_crop)))
    assert {tuple(result.shape) for result in results} == {(channels, 24, 16)}
    assert all(bool(torch.isfinite(result).all()) for result in results)
    assert len({result.sum().item() for result in results}) > 50


def test_posterising_to_no_bit_keeps_one() -> None:
    settings = changes(rand_augment="rand-m10-inc1-p1-n1")
    change = FinetuneAugmentation(settings, (24, 24), mean=(0.5,), std=(0.2,))
    (policy,) = change.colour.transforms
    (op,) = [op for op in policy.ops if op.name == "PosterizeIncreasing"]
    op.prob = 1.0
    picture = Image.new("L", (2, 1))
    picture.putdata([100, 200])
    assert list(op(picture).tobytes()) == [0, 128]


def test_colour_jitter_changes_pixels_and_nothing_else() -> None:
    image = random_image(3)
    sizes = ((40, 50), (0.0,) * 3, (1.0,) * 3)
    still = changes(rand_augment=None, reprob=0.0, crop_scale=(1.0, 1.0), horizontal_flip=False)
    jittered = changes(
        rand_augment=None,
        reprob=0.0,
        crop_scale=(1.0, 1.0),
        horizontal_flip=False,
        color_jitter=0.4,
    )
    with seeded(3):
        plain = FinetuneAugmentation(still, sizes[0], mean=sizes[1], std=sizes[2])(image)
    with seeded(3):
        changed = FinetuneAugmentation(jittered, sizes[0], mean=sizes[1], std=sizes[2])(image)
    assert plain.shape == changed.shape
    assert not torch.equal(plain, changed)


def test_pictures_finer_than_8_bit_keep_their_depth_without_a_policy() -> None:
    image = torch.linspace(0.5, 0.502, 32 * 32).view(1, 32, 32)
    change = FinetuneAugmentation(PLAIN, (32, 32), mean=(0.0,), std=(1.0,))
    with seeded(0):
        assert len(change(image).unique()) > 20


def test_any_number_of_channels_works_without_a_policy() -> None:
    settings = changes(rand_augment=None, reprob=1.0)
    change = FinetuneAugmentation(settings, (16, 24), mean=(0.5,) * 7, std=(0.25,) * 7)
    with seeded(0):
        assert change(random_image(7)).shape == (7, 16, 24)


def test_erasing_puts_noise_into_a_rectangle() -> None:
    image = torch.full((1, 40, 40), 128, dtype=torch.uint8)
    erasing = changes(rand_augment=None, reprob=1.0)
    with seeded(1):
        erased = FinetuneAugmentation(erasing, (40, 40), mean=(0.5,), std=(0.25,))(image)
    background = erased.flatten().mode().values
    is_noise = erased[0] != background
    rows, columns = is_noise.any(dim=1), is_noise.any(dim=0)
    assert 0 < is_noise.sum() < is_noise.numel() / 2
    assert is_noise.sum() == rows.sum() * columns.sum()


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 3)
    train, _ = open_labelled(FinetuneDataConfig(path=str(tmp_path), val_share=0.3), seed=0)
    settings = changes(rand_augment="rand-m9-mstd0.5-inc1", reprob=0.25)
    change = FinetuneAugmentation(settings, (32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)

    def sample(seed: int, key: tuple[int, int]) -> torch.Tensor:
        image: torch.Tensor = FinetuneDataset(
            train, change, seed=seed, reading=Reading(in_chans=3)
        )[key]["image"]
        return image

    first = sample(7, (2, 1))
    torch.rand(5)  # the global generator moves on
    assert torch.equal(sample(7, (2, 1)), first)
    for other in (sample(7, (3, 1)), sample(8, (2, 1)), sample(7, (2, 0))):
        assert not torch.equal(other, first)


def test_the_stand_in_of_a_broken_file_brings_its_own_label(tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "b", 4)
    broken = tmp_path / "a" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"\x89PNG but not really")
    images = ImageList(
        paths=(str(broken), *map(str, paths)), labels=(0, 1, 1, 1, 1), classes=("a", "b")
    )
    change = FinetuneAugmentation(PLAIN, (32, 32), mean=(0.5,) * 3, std=(0.2,) * 3)
    sample = FinetuneDataset(images, change, seed=0, reading=Reading(in_chans=3))[(0, 0)]
    assert sample["label"] == 1
    assert sample["path"] in map(str, paths)
    assert [path for path, _ in sample["skipped"]] == [str(broken)]
    decode_image(sample["path"], 3)
    assert sample_seed(0, "augment", 0, 0) != sample_seed(0, "augment", 0, 1)


def test_half_of_the_images_beside_a_probe_are_as_evaluation_has_them_but_for_flips(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        write_pictures(tmp_path / name, 20)
    train, _ = open_labelled(FinetuneDataConfig(path=str(tmp_path), val_share=0.3), seed=0)
    look = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    evaluated = EvaluationTransform((32, 32), **look)
    reading = Reading(in_chans=3)
    as_scored = EvaluationDataset(train, evaluated, reading=reading)
    change = FinetuneAugmentation(changes(rand_augment=None, reprob=0.0), (32, 32), **look)
    crops = FinetuneDataset(train, change, seed=3, reading=reading)
    mixed = FinetuneDataset(train, change, seed=3, reading=reading, evaluated=evaluated)

    def turned(image: torch.Tensor, other: torch.Tensor) -> int:
        """Whether `other` is the image (1), its mirror image (2) or neither (0)."""
        return 1 if torch.equal(image, other) else 2 * torch.equal(image.flip(2), other)

    keys = [(epoch, index) for epoch in range(4) for index in range(len(train))]
    seen = [turned(as_scored[key[1]]["image"], mixed[key]["image"]) for key in keys]
    assert 0.35 < sum(map(bool, seen)) / len(keys) < 0.65
    assert 0.3 < seen.count(1) / sum(map(bool, seen)) < 0.7
    assert not any(turned(as_scored[key[1]]["image"], crops[key]["image"]) for key in keys)
    for key in keys[:9]:
        assert torch.equal(mixed[key]["image"], mixed[key]["image"])
