"""How many copies and odd pictures does `fcmae curate` find in your folder? Plants some and counts.

    python examples/planted_copies.py runs/quickstart elpv --output planted \
        --odd sky/usr/share/stellarium/nebulae

Copies of --copies pictures are cropped by a tenth, made a fifth brighter, or saved as JPEG of
quality 40, in turn; --num_odd pictures of another folder lie among them. What you give behind
`--` goes to `fcmae curate`, such as `-- --correlation 0.9`. The same command plants the same ones.

Prints how many of each kind were found (recall), and how many of all that was found were planted
(precision, at least: your folder may have copies and odd pictures of its own).
"""

import argparse
import csv
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageEnhance

from fcmae.__main__ import main
from fcmae.data import open_images

ODD_PX = 300


def crop(picture: Image.Image) -> Image.Image:
    """Return the middle nine tenths."""
    width, height = picture.size
    left, top = round(0.05 * width), round(0.05 * height)
    return picture.crop((left, top, width - left, height - top))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": crop,
    "bright": lambda picture: ImageEnhance.Brightness(picture).enhance(1.2),
    "jpeg": lambda picture: picture,
}


def plant(paths: list[str], odd: list[Path], folder: Path, count: int, rng: random.Random) -> None:
    """Put links to all pictures, `count` changed copies and the odd ones into a new folder."""
    folder.mkdir(parents=True)
    for number, path in enumerate(paths):
        (folder / f"own-{number:06d}{Path(path).suffix}").symlink_to(Path(path).absolute())
    for place, number in enumerate(rng.sample(range(len(paths)), count)):
        kind = list(CHANGES)[place % len(CHANGES)]
        with Image.open(paths[number]) as picture:
            mode = "L" if picture.mode in ("1", "L", "I;16") else "RGB"
            changed = CHANGES[kind](picture.convert(mode))
        file = folder / f"copy-{kind}-{number:06d}{'.jpg' if kind == 'jpeg' else '.png'}"
        changed.save(file, quality=40)
        mode = changed.mode
    for number, path in enumerate(odd):
        with Image.open(path) as picture:
            picture.convert(mode).resize((ODD_PX, ODD_PX)).save(folder / f"odd-{number:03d}.png")


def share(part: int, whole: int) -> str:
    """Return a share in words."""
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def count(table: Path) -> list[str]:
    """Return what was found of each kind, as sentences."""
    with open(table, encoding="utf-8", newline="") as file:
        rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}
    said, found = [], 0
    for kind in CHANGES:
        planted = [name for name in rows if name.startswith(f"copy-{kind}-")]
        own = [f"own-{name.rsplit('-', 1)[1]}" for name in planted]
        hits = sum(
            rows[name]["group"] != "" and rows[name]["group"] == rows[other]["group"]
            for name, other in zip(planted, own, strict=True)
        )
        found += hits
        said.append(f"copies, {kind}: {share(hits, len(planted))} found")
    marked = sum(row["duplicate_of"] != "" for row in rows.values())
    said.append(f"near duplicates in all: {marked}, of which {share(found, marked)} were planted")
    for name, column in (("odd", "is_odd"), ("reconstructed worst", "is_worst")):
        planted = [row for stem, row in rows.items() if stem.startswith("odd-")]
        hits = sum(row[column] == "1" for row in planted)
        marked = sum(row[column] == "1" for row in rows.values())
        said.append(
            f"{name}: {share(hits, len(planted))} of the planted ones; {marked} in all, of which "
            f"{share(hits, marked)} were planted"
        )
    return said


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("source", help="a run or weights, as fcmae curate takes them")
parser.add_argument("images", nargs="+", help="your pictures, or elpv")
parser.add_argument("--odd", type=Path, required=True, help="a folder of quite other pictures")
parser.add_argument("--output", type=Path, required=True, help="a new folder")
parser.add_argument("--copies", type=int, default=100)
parser.add_argument("--num_odd", type=int, default=20)
asked, more = parser.parse_known_args()
more = [word for word in more if word != "--"]
numbers = random.Random(0)
others = sorted(path for path in asked.odd.rglob("*.*") if path.suffix in (".png", ".jpg"))
chosen = numbers.sample(others, asked.num_odd)
plant(list(open_images(asked.images).paths), chosen, asked.output / "images", asked.copies, numbers)
page = asked.output / "curation"
status = main(["curate", asked.source, str(asked.output / "images"), "--output", str(page), *more])
if status:
    raise SystemExit(status)
print("\n".join(count(page / "curation.csv")))
