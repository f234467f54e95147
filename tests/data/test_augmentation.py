"""Crops, flips and turns, and what evaluation does instead."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from fcmae.data import (
    EvaluationTransform,
    Normalisation,
    PretrainAugmentation,
    decode_image,
    default_mean_std,
    seeded,
    to_float,
)
from fcmae.data.parts import cut
from fcmae.errors import ConfigError

PLAIN = {"mean": (0.0,), "std": (1.0,)}
WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}


def image(channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    """Uint8 noise [C, H, W]; no two of its turns and reflections are equal."""
    rng = torch.Generator().manual_seed(height)
    return torch.randint(256, (channels, height, width), generator=rng, dtype=torch.uint8)


def augment(augmentation: PretrainAugmentation, source: Tensor) -> Tensor:
    return augmentation(cut(source, augmentation.choose_crop))


def variants(augmentation: PretrainAugmentation, source: Tensor, draws: int = 60) -> set[bytes]:
    outputs = set()
    for draw in range(draws):
        with seeded(draw):
            outputs.add(augment(augmentation, source).numpy().tobytes())
    return outputs


def bytes_of(*images: Tensor) -> set[bytes]:
    return {turned.contiguous().numpy().tobytes() for turned in images}


def test_flips_are_the_only_variants_of_whole_crops() -> None:
    source = image()
    rightly = PretrainAugmentation((8, 8), **WHOLE)
    assert variants(rightly, source) == bytes_of(source, source.flip(2))
    never = PretrainAugmentation((8, 8), **WHOLE, horizontal_flip=False)
    assert variants(never, source) == bytes_of(source)
    both = PretrainAugmentation((8, 8), **WHOLE, vertical_flip=True)
    expected = bytes_of(source, source.flip(2), source.flip(1), source.flip(1, 2))
    assert variants(both, source) == expected


def test_quarter_turns_are_drawn_for_square_images_only() -> None:
    source = image()
    turning = PretrainAugmentation((8, 8), **WHOLE, horizontal_flip=False, rotate90=True)
    expected = bytes_of(*(source.rot90(turns, (1, 2)) for turns in range(4)))
    assert variants(turning, source) == expected
    with pytest.raises(ConfigError, match=r"data\.rotate90: .* is 8 x 16 px; switch"):
        PretrainAugmentation((8, 16), rotate90=True)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("is_float", [True, False])
def test_a_sample_keeps_its_type_until_it_is_normalised(channels: int, is_float: bool) -> None:
    source = image(channels, 40, 30)
    source = source.float() / 255 if is_float else source
    with seeded(1):
        sample = augment(PretrainAugmentation((24, 16)), source)
    assert sample.shape == (channels, 24, 16)
    assert sample.dtype == source.dtype
    assert sample.is_contiguous()
    mean, std = default_mean_std(channels)
    batch = Normalisation(mean, std)(torch.stack([sample, sample]))
    raw = sample.clamp(0, 1) if is_float else sample.float() / 255
    assert 0 <= raw.min() < raw.max() <= 1
    for channel in range(channels):
        expected = (raw[channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(batch[1, channel], expected)


def test_statistics_for_another_number_of_channels_are_refused() -> None:
    for mean, std, name in (((0.5,), (0.1,) * 3, "mean"), ((0.5,) * 3, (0.1,), "std")):
        with pytest.raises(ConfigError, match=rf"data\.{name}: 1 values for images of 3 channels"):
            Normalisation(mean, std)(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_samples_have_the_pixels_of_torchvisions_random_resized_crop(
    form: str, tmp_path: Path
) -> None:
    """Cropping before decoding is an order of work, not another augmentation."""
    path = str(tmp_path / f"a.{form}")
    Image.fromarray(image(3, 90, 70).permute(1, 2, 0).numpy()).save(path)
    usual = v2.Compose(
        [
            v2.RandomResizedCrop((48, 64), (0.2, 1), interpolation=3, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
        ]
    )
    ours = PretrainAugmentation((48, 64), vertical_flip=True)
    for draw in range(20):
        with seeded(draw):
            sample = ours(decode_image(path, 3, None, ours.choose_crop))
        with seeded(draw):
            assert torch.equal(sample, usual(decode_image(path, 3)))


def test_float_and_uint8_images_are_cropped_alike() -> None:
    source = image(3, 40, 30)
    augmentation = PretrainAugmentation((24, 16))
    outputs = []
    for kind in (source, source.float() / 255):
        with seeded(4):
            outputs.append(to_float(augment(augmentation, kind)))
    torch.testing.assert_close(*outputs, rtol=0, atol=0.03)  # uint8 rounds after each axis


def test_crops_cover_the_share_asked_for() -> None:
    # The value of a pixel is its column: the range of a crop is its width.
    columns = (torch.arange(200, dtype=torch.float32) / 199).expand(1, 200, 200)
    augmentation = PretrainAugmentation((200, 200), crop_scale=(0.25, 0.25), crop_ratio=(1.0, 1.0))
    for draw in range(5):
        with seeded(draw):
            crop = augment(augmentation, columns)
        assert float(crop.max() - crop.min()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (64, 64), (10, 300), (7, 5)])
def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre(height: int, width: int) -> None:
    source = image(3, height, width)
    output = EvaluationTransform((28, 28), mean=(0,) * 3, std=(1,) * 3)(source)
    usual = v2.Compose(
        [v2.Resize(32, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(28)]
    )
    torch.testing.assert_close(output, usual(source).float() / 255)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (80, 50), (30, 300)])
def test_evaluation_covers_rectangles(height: int, width: int) -> None:
    white = torch.full((1, height, width), 255, dtype=torch.uint8)
    output = EvaluationTransform((24, 16), **PLAIN, crop_pct=1.0)(white)
    assert output.shape == (1, 24, 16)
    assert output.min() == 1  # no padding


def test_evaluation_squeezes_large_images_without_cutting() -> None:
    source = torch.zeros(1, 10, 30, dtype=torch.uint8)
    source[..., 0], source[..., -1] = 255, 255  # both edges must survive
    output = EvaluationTransform((384, 384), **PLAIN)(source)
    assert output.shape == (1, 384, 384)
    assert output[..., 0].min() > 0.9
    assert output[..., -1].min() > 0.9
    assert output[..., 192].max() == 0


def test_default_statistics() -> None:
    assert default_mean_std(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (mean,), (std,) = default_mean_std(1)
    assert (round(mean, 3), round(std, 3)) == (0.459, 0.226)
    assert default_mean_std(2) == ((0.5, 0.5), (0.25, 0.25))


@pytest.mark.parametrize("size", [(2, 60000), (60000, 2), (12, 300000)])
def test_of_a_long_strip_the_middle_alone_is_scaled(size: tuple[int, int]) -> None:
    """It rises from 0 to 1 along the strip, so that 0.5 lies in the middle, and across by 0.2."""
    long, short = max(size), min(size)
    rise = torch.linspace(0, 1, long).expand(short, long) * 0.8
    strip = (rise + torch.linspace(0, 0.2, short)[:, None]).expand(3, -1, -1)
    if size[0] > size[1]:
        strip = strip.transpose(1, 2)
    transform = EvaluationTransform((32, 48), mean=(0, 0, 0), std=(1, 1, 1))
    part = transform.choose_part(*size)
    assert part.height * part.width < strip[0].numel() / 50
    top, left = part.top, part.left
    cut_out = strip[:, top : top + part.height, left : left + part.width]
    image = transform(strip)
    assert torch.equal(image, transform(cut_out))
    assert image.mean() == pytest.approx(0.5, abs=1e-3)
    across = image.mean(0).mean(1 if size[0] < size[1] else 0)
    assert across[0] < 0.43 < 0.57 < across[-1]


@pytest.mark.parametrize("size", [(40, 50), (50, 40), (64, 64), (30, 9000), (9000, 31), (7, 7)])
def test_pictures_that_are_no_strips_are_prepared_as_a_whole(size: tuple[int, int]) -> None:
    transform = EvaluationTransform((32, 32), mean=(0, 0, 0), std=(1, 1, 1))
    assert transform.choose_part(*size) == (0, 0, *size, None)


def test_a_strip_of_65000_pixels_is_prepared_in_little_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (1, 65000), dtype=np.uint8)).save(tmp_path / "a.png")
    transform = EvaluationTransform((224, 224), mean=(0.5,), std=(0.5,))
    sizes: list[int] = []
    resize = v2.functional.resize
    image = decode_image(str(tmp_path / "a.png"), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            v2.functional,
            "resize",
            lambda image, size, **options: (
                sizes.append(math.prod(size)) or resize(image, size, **options)
            ),
        )
        assert transform(image).shape == (1, 224, 224)
    assert max(sizes) < 2**20
