"""The page about a set of files: what is in it, what is wrong with it, and how to read it."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from fcmae.data import ImageList, to_float
from fcmae.data.accounting import account_sentence
from fcmae.data.advice import Advice
from fcmae.data.channels import to_channels
from fcmae.data.class_folders import suspicious
from fcmae.data.perceptual_hash import MOST_BITS, MOST_LONG_BITS, near_duplicates
from fcmae.data.readers import UnreadableError
from fcmae.data.reading import Reading
from fcmae.data.survey import Look, equal_files
from fcmae.errors import writing
from fcmae.reports import figures
from fcmae.reports.document import (
    MOST_ROWS,
    Block,
    Bullets,
    Document,
    Picture,
    Section,
    Table,
    Text,
    listed,
)
from fcmae.reports.html import to_html
from fcmae.reports.page import Page
from fcmae.runs.durable import write_text
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import load

SHEET_COLUMNS, SHEET_ROWS, SHEET_PX = 8, 4, 96
PERCENTILES = (0, 1, 50, 99, 100)


@dataclass(frozen=True)
class Inspection(Page):
    """What was found in a set of files; a notebook shows its page.

    Attributes:
        title: the paths.
        images: as a run would find them.
        looks: at each of them.
        advice: settings for it; None when nothing can be read.
        near, exact: groups of duplicates, as indices of `looks` and as paths.
        paths: what was asked about, as given.
    """

    title: str
    images: ImageList
    looks: Sequence[Look]
    advice: Advice | None
    near: list[list[int]]
    exact: list[list[str]]
    paths: tuple[str, ...] = ()

    @property
    def sentences(self) -> list[str]:
        """What the page says, in a few sentences."""
        looks = self.looks
        sampled = [look for look in looks if look.pixels is not None]
        said = [_account(self)]
        if len(sampled) < len(looks):
            said.append(f"Every header was read; pixels of {len(sampled):,} files, evenly spread.")
        unusable = sum(bool(look.reason) for look in looks)
        constant = sum(look.is_constant for look in looks)
        repeated = sum(len(group) - 1 for group in self.exact)
        near = sum(len(group) - 1 for group in self.near)
        holes = [1 - look.valid_share for look in sampled if look.valid_share < 1]
        for count, text in (
            (unusable, "files cannot be used; the reasons are below"),
            (constant, "pictures have one value in all pixels"),
            (repeated, "files are exact copies of others"),
            (near, "pictures look like another one (copies among them)"),
        ):
            if count:
                said.append(f"{count:,} {text}.")
        if holes:
            share = 100 * sum(holes) / len(sampled)
            said.append(
                f"{len(holes):,} of {len(sampled):,} sampled pictures have pixels without content "
                f"(nodata, masks, transparency, NaN): {share:.1f} % of all."
            )
        if self.images.labels is None:
            said.append(f"No labels: the set {self.images.why_unlabelled}.")
        else:
            said.append(f"{len(self.images.classes or ())} classes.")
        if self.advice is not None:
            said += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in self.advice.warnings]
            if self.advice.unfit:
                path, reason = self.advice.unfit[0]
                said.append(
                    f"{len(self.advice.unfit):,} sampled files do not fit the configuration below; "
                    f"the first is {path}: {reason}."
                )
        return said

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a pretraining of this set, nested, without run.dir; {} if none can be."""
        if self.advice is None:
            return {}
        where = [path if path == "elpv" else os.path.abspath(path) for path in self.paths]
        path = where[0] if len(where) == 1 else where
        return {**self.advice.settings, "data": {"path": path, **self.advice.settings["data"]}}

    @property
    def problems(self) -> dict[str, str]:
        """Files that a run cannot use, with the reason of each."""
        return {look.path: look.reason for look in self.looks if look.reason}

    def document(self) -> Document:
        """Return the page before it is written."""
        return Document(
            f"Inspection: {self.title}",
            _account(self),
            [
                Section("In short", [Bullets(self.sentences)]),
                Section("Contact sheet", _sheet(self)),
                Section("Kinds and depths", _kinds(self)),
                Section("Sizes", _sizes(self)),
                Section("Values of each band", _values(self)),
                Section("Files that cannot be used", _unusable(self)),
                Section("Files passed over", _passed_over(self)),
                Section("Empty and constant pictures", _constant(self)),
                Section("Duplicates", _duplicates(self)),
                Section("Class folders", _classes(self)),
                Section("A configuration for this set", _configuration(self)),
            ],
        )

    def save(
        self,
        output: str | os.PathLike[str] = "inspection.html",
        write: str | os.PathLike[str] | None = None,
    ) -> list[Path]:
        """Write the page, and settings that fit the set where there are any.

        Args:
            output: the page, one file.
            write: the settings, a YAML for `fcmae pretrain --config`; its run.dir is
                runs/NAME_OF_THE_FILE. None writes none.

        Returns:
            The files that were written.

        Raises:
            ConfigError: a file that cannot be written.
        """
        written = [_write(output, to_html(self.document()), "--output")]
        if write is not None and self.settings:
            target = Path(write)
            written.append(_write(target, to_config(self, f"runs/{target.stem}"), "--write"))
            load(PretrainConfig, target)
        return written


def _write(path: str | os.PathLike[str], text: str, option: str) -> Path:
    target = Path(path)
    with writing(f"{option}: {os.fspath(path)!r}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    return target


def inspection_of(
    paths: Sequence[str], images: ImageList, looks: Sequence[Look], advice: Advice | None
) -> Inspection:
    """Return the inspection of a set, with its duplicates."""
    near = near_duplicates([look.fingerprint for look in looks])
    exact = equal_files([look.path for look in looks])
    return Inspection(", ".join(paths), images, looks, advice, near, exact, tuple(paths))


def _account(found: Inspection) -> str:
    assert found.images.accounting is not None
    unusable = sum(bool(look.reason) for look in found.looks)
    account = found.images.accounting
    skipped = len(account.problems) + unusable
    return account_sentence(account, used=len(found.looks) - unusable, skipped=skipped)


def _sheet(found: Inspection) -> list[Block]:
    if found.advice is None:
        return []
    data = found.advice.settings["data"]
    value_range = data["value_range"]
    reading = Reading(
        in_chans=data["in_chans"],
        value_range=None if value_range is None else tuple(value_range),
    )
    cells: list[np.ndarray] = []
    sampled = [look for look in found.looks if look.pixels is not None]
    wanted = SHEET_COLUMNS * SHEET_ROWS
    for look in sampled[:: max(1, len(sampled) // wanted)][:wanted]:
        assert look.pixels is not None
        try:
            image = np.nan_to_num(to_float(to_channels(look.pixels, reading)).numpy())
        except UnreadableError:
            continue
        shown = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
        pixels = (shown.transpose(1, 2, 0) * 255).round().astype(np.uint8)
        cells.append(_in_a_square(pixels))
    if not cells:
        return []
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % min(SHEET_COLUMNS, len(cells)))
    columns = min(SHEET_COLUMNS, len(cells))
    rows = [np.stack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    caption = "Pictures of the set as the configuration below reads them, evenly spread."
    if data["in_chans"] not in (1, 3):
        caption += " Of more than three bands, the first three are shown as red, green, blue."
    return [Picture("contact_sheet.png", figures.image_rows(rows), caption, is_wide=True)]


def _in_a_square(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = SHEET_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cell = Image.new("RGB", (SHEET_PX, SHEET_PX), "white")
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    cell.paste(picture, ((SHEET_PX - size[0]) // 2, (SHEET_PX - size[1]) // 2))
    return np.asarray(cell)


def _kinds(found: Inspection) -> list[Block]:
    rows = Counter(
        (about.kind, about.colour, str(about.bands), str(about.dtype), str(about.bits))
        for look in found.looks
        if (about := look.about) is not None
    )
    header = ["kind", "colours", "bands", "type", "bits", "files"]
    table = Table(header, [[*key, f"{count:,}"] for key, count in rows.most_common(MOST_ROWS)])
    notes = Counter(look.about.note for look in found.looks if look.about and look.about.note)
    blocks: list[Block] = [table] if rows else []
    if notes:
        blocks.append(
            Bullets([f"{count:,} files: {note}." for note, count in notes.most_common(20)])
        )
    return blocks


def _sizes(found: Inspection) -> list[Block]:
    headers = [look.about for look in found.looks if look.about is not None]
    if not headers:
        return []
    heights = np.array([about.height for about in headers])
    widths = np.array([about.width for about in headers])
    common = Counter(zip(heights.tolist(), widths.tolist(), strict=True)).most_common(10)
    kib = np.array([look.num_bytes / 1024 for look in found.looks if look.about is not None])
    sides = figures.draw_histogram(
        {"height": heights, "width": widths}, x_name="px", y_name="pictures"
    )
    sizes = figures.draw_histogram(
        {"": np.maximum(kib, 1e-3)}, x_name="KiB per file", y_name="files"
    )
    return [
        Text(
            f"Heights {heights.min():,} to {heights.max():,} px, widths {widths.min():,} to "
            f"{widths.max():,} px; half of the pictures have a shorter side of "
            f"{int(np.median(np.minimum(heights, widths))):,} px or less."
        ),
        Picture("sides.svg", sides, "Heights and widths."),
        Picture("bytes.svg", sizes, "Sizes of the files."),
        Table(
            ["height x width, px", "pictures"],
            [[f"{height} x {width}", f"{count:,}"] for (height, width), count in common],
        ),
    ]


def _values(found: Inspection) -> list[Block]:
    """Return percentiles and histograms per band, by type and number of bands."""
    groups: dict[tuple[str, int], list[np.ndarray]] = {}
    for look in found.looks:
        if look.pixels is None:
            continue
        values, valid, _ = look.pixels
        known = values.reshape(-1, values.shape[2])
        known = known if valid is None else known[valid.ravel()]
        groups.setdefault((str(values.dtype), values.shape[2]), []).append(known)
    blocks: list[Block] = []
    rows = []
    for (dtype, bands), parts in sorted(groups.items(), key=lambda item: -len(item[1])):
        together = np.concatenate(parts).astype(np.float64)
        together = together[np.isfinite(together).all(axis=1)]
        if not len(together):
            continue
        for band in range(min(bands, MOST_ROWS)):
            column = together[:, band]
            numbers = [*np.percentile(column, PERCENTILES), column.mean(), column.std()]
            rows.append(
                [f"{band} of {bands}, {dtype}", f"{len(parts):,}", *(f"{n:.4g}" for n in numbers)]
            )
        if len(blocks) < 4:
            shown = {f"band {band}": together[:, band] for band in range(min(bands, 6))}
            data = figures.draw_histogram(shown, x_name=f"value ({dtype})", y_name="pixels")
            caption = f"Values of {len(parts):,} files of {bands} bands, {dtype}."
            blocks.append(Picture(f"values-{dtype}-{bands}.svg", data, caption))
    header = ["band", "files", "lowest", "1 %", "median", "99 %", "highest", "mean", "std"]
    return [Table(header, rows[:MOST_ROWS]), *blocks] if rows else []


def _unusable(found: Inspection) -> list[Block]:
    assert found.images.accounting is not None
    bad = [(look.path, look.reason) for look in found.looks if look.reason]
    bad += found.images.accounting.told()
    return listed(": They are skipped by a run.", ["file", "reason"], [list(row) for row in bad])


def _passed_over(found: Inspection) -> list[Block]:
    account = found.images.accounting
    assert account is not None
    rows = [[kind, f"{count:,}"] for kind, count in account.no_images.most_common()]
    return listed(": Files that are no images, by kind.", ["kind", "files"], rows)


def _constant(found: Inspection) -> list[Block]:
    rows = [[look.path] for look in found.looks if look.is_constant]
    return listed(": All their pixels have one value.", ["file"], rows)


def _duplicates(found: Inspection) -> list[Block]:
    exact = [[f"{len(group)}", ", ".join(group[:8])] for group in found.exact]
    near = [
        [f"{len(group)}", ", ".join(found.looks[index].path for index in group[:8])]
        for group in found.near
    ]
    blocks = listed(": Files of the same content.", ["copies", "files"], exact)
    return blocks + listed(
        f": Pictures whose difference hashes are equal but for {MOST_BITS} of 64 bits and "
        f"{MOST_LONG_BITS} of 256: look at them before the set is cut, since copies on both sides "
        "flatter scores.",
        ["alike", "files"],
        near,
    )


def _classes(found: Inspection) -> list[Block]:
    images = found.images
    if images.labels is None or images.classes is None:
        return [Text(f"No labels: the set {images.why_unlabelled}.")]
    counts = Counter(images.classes[label] for label in images.labels if label >= 0)
    rows = [[name, f"{counts[name]:,}"] for name in images.classes]
    blocks: list[Block] = []
    if images.parts:
        names = ", ".join(f"{name}/" for name in images.parts.values())
        blocks.append(Text(f"The set is cut in parts: {names}."))
    if odd := suspicious(images.classes, counts):
        blocks.append(Bullets([f"{sentence}." for sentence in odd[:MOST_ROWS]]))
    return [*blocks, *listed(f": {len(rows)} classes.", ["class", "images"], rows)]


def _configuration(found: Inspection) -> list[Block]:
    if found.advice is None:
        return [Text("No file can be read, so that there is nothing to configure.")]
    rows = [
        [name, str(found.advice.settings[name.partition(".")[0]][name.partition(".")[2]]), why]
        for name, why in found.advice.rules.items()
    ]
    return [
        Text("Every value with the rule that chose it."),
        Table(["setting", "value", "rule"], rows),
    ]


def to_config(found: Inspection, run_dir: str) -> str:
    """Return a YAML file for `fcmae pretrain --config`, each value with its rule."""
    assert found.advice is not None
    settings = {"run": {"dir": run_dir}, **found.settings}
    lines = ["# Written by fcmae inspect from what the files hold; change what you know better."]
    for section, values in settings.items():
        lines.append(f"\n{section}:")
        for name, value in values.items():
            if why := found.advice.rules.get(f"{section}.{name}"):
                lines.append(f"  # {why}")
            listed = yaml.safe_dump([value], default_flow_style=True, width=math.inf)
            lines.append(f"  {name}: {listed.strip()[1:-1]}")
    return "\n".join(lines) + "\n"
