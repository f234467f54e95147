"""Which pictures an encoder finds alike: queries with their nearest pictures, as one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import fcmae
from fcmae.data.grouping import group_numbers

NEAREST = 5
ROWS = 5
CELL_PX, CAPTION_PX, GAP_PX, FRAME_PX = 96, 16, 6, 3
SAME, OTHER, INK = "#1f6f8b", "#c8501e", "#333333"


@dataclass(frozen=True)
class Nearest:
    """The nearest pictures of every picture of a set.

    Attributes:
        files: N paths.
        labels: their classes [N].
        classes: names.
        places: indices of the NEAREST nearest others [N, 5], the nearest first.
        cosine: of their centred features [N, 5].
        agreement: share of the nearest that have the picture's own class.
        chance: the same of others drawn at random.
    """

    files: Sequence[str]
    labels: np.ndarray
    classes: Sequence[str]
    places: np.ndarray
    cosine: np.ndarray
    agreement: float
    chance: float

    def queries(self, seed: int = 0) -> list[int]:
        """Return ROWS pictures drawn by the seed, the classes in turn."""
        order = np.random.default_rng(seed).permutation(len(self.files))
        ranked: list[tuple[int, int, int]] = []
        seen = dict.fromkeys(range(len(self.classes)), 0)
        for index in order:
            label = int(self.labels[index])
            ranked.append((seen[label], label, int(index)))
            seen[label] += 1
        return [index for _, _, index in sorted(ranked)[:ROWS]]


def find(file: Path, group: str | None) -> Nearest:
    """Return the nearest pictures by the features in a file of `fcmae embed`.

    As `fcmae probe` asks neighbours: by the cosine of features less their mean.

    Args:
        file: an .npz with labels.
        group: `data.group` of the run; pictures of the query's own group are left out.
    """
    with np.load(file) as found:
        vectors, files = found["features"].astype(float), found["files"].tolist()
        labels, classes = found["labels"], found["classes"].tolist()
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    numbers = np.arange(len(files)) if group is None else group_numbers(files, group)
    is_out = numbers[:, None] == numbers[None, :]
    cosine[is_out] = -np.inf
    places = np.argsort(-cosine, axis=1, kind="stable")[:, :NEAREST]
    is_same = labels[:, None] == labels[None, :]
    return Nearest(
        files,
        labels,
        classes,
        places,
        np.take_along_axis(cosine, places, axis=1),
        float((labels[places] == labels[:, None]).mean()),
        float((is_same & ~is_out).sum() / (~is_out).sum()),
    )


def thumbnail(file: Path, show: tuple[float, float]) -> Image.Image:
    """Return a file as a square picture: its first three channels, or one as grey."""
    pixels = np.atleast_3d(np.asarray(fcmae.read_image(file), dtype=float))
    pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., :1].repeat(3, axis=2)
    black, white = show
    scaled = np.clip((pixels - black) / (white - black), 0, 1)
    picture = Image.fromarray((scaled * 255).round().astype(np.uint8))
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    square = picture.crop((left, top, left + side, top + side))
    return square.resize((CELL_PX, CELL_PX), Image.Resampling.LANCZOS)


def draw(found: Nearest, work: Path, show: tuple[float, float]) -> tuple[Image.Image, list[str]]:
    """Return a row per query, the query first, and the files that it shows."""
    queries = found.queries()
    pitch = CELL_PX + GAP_PX
    size = (GAP_PX + (NEAREST + 1) * pitch + GAP_PX, GAP_PX + len(queries) * (pitch + CAPTION_PX))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    shown = []
    for row, query in enumerate(queries):
        y = GAP_PX + row * (pitch + CAPTION_PX)
        for column, index in enumerate([query, *found.places[query]]):
            x = GAP_PX + column * pitch + GAP_PX * (column > 0)
            label = found.labels[index]
            colour = SAME if label == found.labels[query] else OTHER
            sheet.paste(thumbnail(work / found.files[index], show), (x, y))
            said = str(found.classes[label])
            if column:
                corner = (x + CELL_PX - 1, y + CELL_PX - 1)
                pen.rectangle(((x, y), corner), outline=colour, width=FRAME_PX)
                said = f"{found.cosine[query, column - 1]:.2f}: {said}"
            pen.text((x, y + CELL_PX + 1), fitted(said, font), colour if column else INK, font)
            shown.append(found.files[index])
    return sheet, shown


def fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return as much of a text as a cell is wide."""
    while font.getlength(text) > CELL_PX:
        text = text[:-1]
    return text
