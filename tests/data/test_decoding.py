"""Every kind of file comes out with the channels asked for, or says why it cannot."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import (
    FAULTS,
    HEIGHT,
    WIDTH,
    array_bytes,
    colours,
    damaged,
    grey,
    photo,
    saved,
)
from PIL import Image, ImageOps

from fcmae.data import (
    MicroBatches,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    SampleStream,
    UndecodableImageError,
    decode_image,
    find_images,
    make_loader,
    to_float,
)
from fcmae.errors import DataError


def decode(folder: Path, content: bytes, in_chans: int, **options: object) -> torch.Tensor:
    path = folder / "picture.jpg"  # whatever it is: the content decides
    path.write_bytes(content)
    return decode_image(str(path), in_chans, **options)  # type: ignore[arg-type]


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


def test_colours_come_out_as_they_are_and_grey_is_repeated(tmp_path: Path) -> None:
    content = saved(Image.fromarray(colours()), "PNG")
    torch.testing.assert_close(decode(tmp_path, content, 3), chw(colours()), rtol=0, atol=0)
    image = decode(tmp_path, saved(Image.fromarray(grey()), "PNG"), 3)
    torch.testing.assert_close(image, chw(grey()[..., None].repeat(3, 2)), rtol=0, atol=0)


def test_colours_become_luma(tmp_path: Path) -> None:
    luma = decode(tmp_path, saved(Image.fromarray(colours()), "PNG"), 1)
    expected = (colours() * np.array([0.299, 0.587, 0.114])).sum(-1)
    assert luma.dtype == torch.uint8
    torch.testing.assert_close(luma[0].double(), torch.from_numpy(expected), rtol=0, atol=0.51)
    array = decode(tmp_path, array_bytes(colours()), 1)
    torch.testing.assert_close(array, luma, rtol=0, atol=1)


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_a_picture_becomes_grey_or_colour(
    mode: str, in_chans: int, tmp_path: Path
) -> None:
    form = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    image = decode(tmp_path, saved(Image.fromarray(colours()).convert(mode), form), in_chans)
    assert image.shape == (in_chans, HEIGHT, WIDTH)
    assert image.dtype == torch.uint8
    assert image.float().std() > 10


def test_a_cmyk_jpeg_keeps_its_brightness(tmp_path: Path) -> None:
    plain = Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK")
    image = decode(tmp_path, saved(plain, "JPEG"), 3)
    expected = torch.tensor([200.0, 40, 90])
    torch.testing.assert_close(image.float().mean((1, 2)), expected, rtol=0, atol=4)


def test_one_bit_pictures_are_black_and_white(tmp_path: Path) -> None:
    image = decode(tmp_path, saved(Image.fromarray(grey() > 127), "PNG"), 1)
    assert image.unique().tolist() == [0, 255]
    assert decode(tmp_path, array_bytes(grey() > 127), 1).equal(image)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_black_and_half_transparent_ones_darker(
    mode: str, tmp_path: Path
) -> None:
    if mode == "P":
        picture = Image.new("P", (3, 1), 1)
        picture.putpalette([9, 9, 9, 200, 200, 200])
        picture.putpixel((0, 0), 0)
        content = saved(picture, "PNG", transparency=bytes([0, 128]))
        expected = [0, 100, 100]
    else:
        picture = Image.new(mode, (3, 1), (200,) * (len(mode) - 1) + (255,))
        picture.putpixel((0, 0), (200,) * (len(mode) - 1) + (0,))
        picture.putpixel((1, 0), (200,) * (len(mode) - 1) + (128,))
        content = saved(picture, "PNG")
        expected = [0, 100, 200]
    for in_chans in (1, 3):
        image = decode(tmp_path, content, in_chans)
        for channel in image.float():
            assert channel[0].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_precision(form: str, tmp_path: Path) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) + 30000
    image = decode(tmp_path, saved(Image.fromarray(values), form), 3)
    expected = torch.from_numpy(values.astype(np.float64) / 65535).float()
    torch.testing.assert_close(image, expected.expand(3, -1, -1), rtol=1e-6, atol=0)


def test_float_and_32_bit_pictures_are_scaled(tmp_path: Path) -> None:
    values = grey().astype(np.float32) / 255
    image = decode(tmp_path, saved(Image.fromarray(values), "TIFF"), 1)
    torch.testing.assert_close(image[0], torch.from_numpy(values), rtol=1e-6, atol=0)
    wide = saved(Image.fromarray(grey().astype(np.int32) * 257), "TIFF")
    scaled = decode(tmp_path, wide, 1, value_range=(0.0, 65535.0))
    torch.testing.assert_close(scaled, image, rtol=1e-6, atol=1e-7)


def test_a_value_range_says_what_black_and_white_are(tmp_path: Path) -> None:
    values = np.array([[-1000.0, -500.0, 0.0, 1000.0, 5000.0]])
    image = decode(tmp_path, array_bytes(values), 1, value_range=(-1000.0, 1000.0))
    assert image.tolist() == [[[0.0, 0.25, 0.5, 1.0, 1.0]]]
    twelve_bit = array_bytes(np.array([[0, 4095]], dtype=np.uint16))
    assert decode(tmp_path, twelve_bit, 1, value_range=(0.0, 4095.0)).tolist() == [[[0.0, 1.0]]]
    eight_bit = decode(
        tmp_path, array_bytes(np.array([[0, 51]], np.uint8)), 1, value_range=(0, 204)
    )
    assert (eight_bit.dtype, eight_bit.tolist()) == (torch.float32, [[[0.0, 0.25]]])


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    content = saved(Image.fromarray(colours()), form, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    expected = chw(np.array(upright))
    torch.testing.assert_close(decode(tmp_path, content, 3), expected, rtol=0, atol=0)
    assert expected.shape[1:] == ((WIDTH, HEIGHT) if 5 <= orientation <= 8 else (HEIGHT, WIDTH))


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_animations_give_their_first_frame(form: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (10, 200, 90)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:])
    assert decode(tmp_path, content, 3).float().mean() == pytest.approx(10, abs=2)


@pytest.mark.parametrize("channels", [2, 4, 5, 7, 12])
@pytest.mark.parametrize("is_channels_last", [True, False])
def test_arrays_carry_any_number_of_channels(
    channels: int, is_channels_last: bool, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).random((13, 17, channels))
    stored = values if is_channels_last else values.transpose(2, 0, 1)
    image = decode(tmp_path, array_bytes(stored), channels)
    torch.testing.assert_close(image, chw(values).float())


@pytest.mark.parametrize("in_chans", [1, 3])
@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (6, 8, 3), (3, 6, 8), (1, 6, 8)])
def test_arrays_of_one_and_three_channels_convert_into_each_other(
    shape: tuple[int, ...], in_chans: int, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    image = decode(tmp_path, array_bytes(np.asfortranarray(values)), in_chans)
    assert image.shape == (in_chans, 6, 8)
    assert 0 <= image.min() < 0.35 < 0.65 < image.max() <= 1


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float64"])
def test_the_range_of_an_array_follows_its_type(dtype: str, tmp_path: Path) -> None:
    top = 1.0 if dtype.startswith("f") else np.iinfo(dtype).max
    image = decode(tmp_path, array_bytes(np.array([[0, top]]).astype(dtype)), 1)
    assert (image.dtype, image.tolist()) == (torch.float32, [[[0.0, 1.0]]])


@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_wide_integers_do_not_say_what_is_white(dtype: str, top: int, tmp_path: Path) -> None:
    content = array_bytes(np.array([[0, top]]).astype(dtype))
    with pytest.raises(UndecodableImageError, match=rf"{dtype} values from 0 to {top}: .*set data"):
        decode(tmp_path, content, 1)
    assert decode(tmp_path, content, 1, value_range=(0, top)).tolist() == [[[0.0, 1.0]]]


def test_bands_of_a_picture_and_pages_of_a_tiff_are_channels_where_no_colour_fits(
    tmp_path: Path,
) -> None:
    four = colours(4)
    image = decode(tmp_path, saved(Image.fromarray(four), "PNG"), 4)
    torch.testing.assert_close(image, chw(four), rtol=0, atol=0)
    pages = [Image.fromarray(colours(1, seed)[..., 0].astype(np.uint16)) for seed in range(5)]
    content = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    expected = torch.stack([torch.from_numpy(np.array(page).astype(np.float32)) for page in pages])
    torch.testing.assert_close(decode(tmp_path, content, 5), expected / 65535)


def test_to_float_gives_one_range() -> None:
    assert to_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx(
        [0, 0.2, 1]
    )
    assert to_float(torch.tensor([-0.1, 0.2, 1.1])).tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("name", FAULTS)
def test_an_unusable_file_says_why(name: str, tmp_path: Path) -> None:
    content, reason = FAULTS[name]
    in_chans = int(name[-1]) if " for " in name else 3
    with pytest.raises(UndecodableImageError, match=reason) as caught:
        decode(tmp_path, content(), in_chans)
    assert caught.value.path == str(tmp_path / "picture.jpg")
    assert str(caught.value) == f"{caught.value.path}: {caught.value.reason}"
    assert "\n" not in caught.value.reason
    assert isinstance(caught.value, DataError)


def test_a_folder_of_every_fault_is_gone_through_and_listed_completely(tmp_path: Path) -> None:
    faults = {name: content() for name, (content, _) in FAULTS.items() if " for " not in name}
    for name, content in faults.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    for number in range(len(faults) * 2):
        (tmp_path / f"good {number}.png").write_bytes(photo("JPEG"))
    augmentation = PretrainAugmentation((32, 32))
    images = find_images(str(tmp_path))
    dataset = PretrainDataset(
        images, augmentation, seed=1, reading=Reading(in_chans=3), num_patches=4, mask_ratio=0.5
    )
    epoch = MicroBatches(SampleStream(len(images), 1, 3), 0, len(images) // 3, 3)
    batches = list(make_loader(dataset, epoch, workers=1))
    skipped = {Path(path).stem for batch in batches for path, _ in batch["skipped"]}
    assert len(faults) > 30
    assert skipped == set(faults)
    assert all("good" in path for batch in batches for path in batch["path"])
    assert all(batch["image"].isfinite().all() for batch in batches)


def test_what_is_no_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(UndecodableImageError, match=r"does not exist \(any more\)"):
        decode_image(str(path), 3)
    path.symlink_to(path)
    with pytest.raises(UndecodableImageError, match="cannot be read"):
        decode_image(str(path), 3)
    with pytest.raises(UndecodableImageError, match="is not a regular file"):
        decode_image(str(tmp_path), 3)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path.unlink()
    path.write_bytes(photo("PNG"))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UndecodableImageError, match=r"cannot be read \(Permission denied\)"):
        decode_image(str(path), 3)


def test_large_arrays_meet_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    content = array_bytes(np.zeros((3, 11, 10), dtype=np.uint8))
    with pytest.raises(UndecodableImageError, match="more pixels than the limit of 100"):
        decode(tmp_path, content, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
def test_any_cut_or_flip_gives_an_image_or_a_reason_and_no_noise(
    form: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, num_refused = photo(form), 0
    for part in range(12):
        for broken in (content[: len(content) * part // 12], damaged(content, part / 12)):
            try:
                image = decode(tmp_path, broken, 3)
            except UndecodableImageError:
                num_refused += 1
            else:
                assert image.shape[0] == 3
    assert 4 < num_refused <= 24
    assert capfd.readouterr() == ("", "")
