"""Pictures with exact masks: photographs with transparency, pasted onto other photographs.

    apt-get download tuxpaint-stamps-default stellarium-data
    dpkg-deb -x tuxpaint-stamps-default_*.deb tuxpaint && dpkg-deb -x stellarium-data_*.deb sky
    python examples/pasted_photographs.py pasted \
        --stamps tuxpaint/usr/share/tuxpaint/stamps \
        --backgrounds sky/usr/share/stellarium/{nebulae,textures,landscapes}

Into OUT go train/images and train/masks, val/images and val/masks: PNGs of one stem, whose masks
hold 0 for the background and 1, 2 and 3 for an animal, a plant and a thing. The same command writes
the same files. Nothing that is pasted or pasted onto for training is seen in val.

Both packages are GPL-2 (Tux Paint's stamps; Stellarium's pictures, with credits of their own in
/usr/share/doc/stellarium-data): pictures made of them are, too.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

# Folders of Tux Paint's stamps that hold photographs, by kind.
KINDS = {
    "animal": ("animals",),
    "plant": ("plants", "food"),
    "thing": ("household", "vehicles", "hobbies/music", "sports"),
}
NAMES = ("background", *KINDS)
PALETTE = [0, 0, 0, 230, 159, 0, 0, 158, 115, 86, 180, 233]  # red, green, blue of each class
LEAST_STAMP_PX = 64
LEAST_CONTRAST = 12  # standard deviation of the grey values of a background, of 255
VAL_SHARE = 0.25  # of the stamps and of the backgrounds


def read_stamps(root: Path) -> dict[str, list[Image.Image]]:
    """Return the photographs of each kind, cut to what is not transparent."""
    found: dict[str, list[Image.Image]] = {}
    for kind, folders in KINDS.items():
        paths = sorted(path for folder in folders for path in (root / folder).rglob("*.png"))
        stamps = [Image.open(path).convert("RGBA") for path in paths if "cartoon" not in path.parts]
        found[kind] = [
            stamp.crop(stamp.getchannel("A").getbbox())
            for stamp in stamps
            if min(stamp.size) >= LEAST_STAMP_PX and stamp.getchannel("A").getextrema()[0] == 0
        ]
    return found


def read_backgrounds(folders: list[Path], side: int) -> list[Image.Image]:
    """Return the opaque photographs that a square of `side` px can be cut from."""
    found = []
    for path in sorted(path for folder in folders for path in folder.rglob("*.png")):
        with Image.open(path) as picture:
            is_large = min(picture.size) >= 2 * side and picture.mode in ("RGB", "L")
            if is_large and np.asarray(picture.convert("L")).std() >= LEAST_CONTRAST:
                found.append(picture.convert("RGB"))
    return found


def cut(background: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """Return a random square of a background, side x side px, mirrored or not."""
    length = int(rng.integers(side, min(background.size) + 1))
    left, top = (int(rng.integers(0, whole - length + 1)) for whole in background.size)
    part = background.crop((left, top, left + length, top + length))
    part = part.resize((side, side), Image.Resampling.BILINEAR)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part


def paste(
    picture: Image.Image, mask: Image.Image, stamp: Image.Image, kind: int, rng: np.random.Generator
) -> None:
    """Paste a stamp at a random size and place, and its class into the mask where it hides most."""
    scale = picture.width * rng.uniform(0.35, 0.75) / max(stamp.size)
    size = tuple(max(1, round(scale * length)) for length in stamp.size)
    stamp = stamp.resize(size, Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    light = rng.uniform(0.6, 1.1)
    alpha = stamp.getchannel("A")
    stamp = stamp.convert("RGB").point(lambda value: round(light * value))
    # A quarter of it at most lies outside.
    place = tuple(
        int(rng.integers(-length // 4, picture.width - length + length // 4 + 1)) for length in size
    )
    picture.paste(stamp, place, alpha)
    mask.paste(kind, place, alpha.point(lambda value: 255 * (value >= 128)))


def write_pictures(
    folder: Path,
    count: int,
    side: int,
    stamps: list[list[Image.Image]],
    backgrounds: list[Image.Image],
    rng: np.random.Generator,
) -> np.ndarray:
    """Write `count` pictures and masks; return the share of the pixels that each class has."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(1 + len(stamps), np.int64)
    for number in range(count):
        picture = cut(backgrounds[rng.integers(len(backgrounds))], side, rng)
        mask = Image.new("P", picture.size, 0)
        mask.putpalette(PALETTE)
        for _ in range(rng.integers(1, 4)):
            kind = int(rng.integers(len(stamps)))
            stamp = stamps[kind][rng.integers(len(stamps[kind]))]
            paste(picture, mask, stamp, 1 + kind, rng)
        picture.save(folder / "images" / f"{number:04d}.png")
        mask.save(folder / "masks" / f"{number:04d}.png")
        pixels += np.bincount(np.asarray(mask).ravel(), minlength=len(pixels))
    return pixels / pixels.sum()


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("out", type=Path)
parser.add_argument("--stamps", type=Path, required=True)
parser.add_argument("--backgrounds", type=Path, nargs="+", required=True)
parser.add_argument("--side", type=int, default=128, help="px of a picture")
parser.add_argument("--train", type=int, default=400, help="pictures")
parser.add_argument("--val", type=int, default=100, help="pictures")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

rng = np.random.default_rng(options.seed)
kinds = [
    [stamps[n] for n in rng.permutation(len(stamps))]
    for stamps in read_stamps(options.stamps).values()
]
grounds = read_backgrounds(options.backgrounds, options.side)
grounds = [grounds[n] for n in rng.permutation(len(grounds))]
for part, count in (("train", options.train), ("val", options.val)):
    own = [
        stamps[: round(VAL_SHARE * len(stamps))]
        if part == "val"
        else stamps[round(VAL_SHARE * len(stamps)) :]
        for stamps in (*kinds, grounds)
    ]
    *own_stamps, own_grounds = own
    shares = write_pictures(options.out / part, count, options.side, own_stamps, own_grounds, rng)
    listed = ", ".join(
        f"{name} {100 * share:.1f} %" for name, share in zip(NAMES, shares, strict=True)
    )
    print(
        f"{options.out / part}: {count} pictures of {sum(map(len, own_stamps))} stamps on "
        f"{len(own_grounds)} backgrounds; pixels: {listed}."
    )
