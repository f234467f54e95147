"""A trained segmenter as others use it: a class for every pixel of new pictures of any size.

Pictures are read as in its own run and seen in tiles of the size of its training crops.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fcmae.data import Normalisation, UndecodableImageError, decode, to_float
from fcmae.data.decoding import Decoded
from fcmae.data.files import ImageList
from fcmae.errors import ConfigError
from fcmae.evaluation.features import Features, with_masks
from fcmae.evaluation.given_images import Images, as_files, check_range, check_some_used
from fcmae.evaluation.segmentation_pictures import OVERLAY, class_colours
from fcmae.evaluation.tiles import Tiling, predict_bands
from fcmae.runs.durable import write_atomically
from fcmae.runs.terminal import progress_bar
from fcmae.weights.segmenter import SegmenterInfo

MASKS, OVERLAYS = "masks", "overlays"  # folders of what `predict_into` writes
MOST_OVERLAY_PX = 2048  # of the longer side: overlays are for looking at
MOST_BYTE_CLASSES = 256
ROWS_AT_ONCE = 512  # bounds memory


@dataclass(frozen=True)
class MaskPredictions:
    """What a segmenter says of pictures, in their order; those that cannot be read are among them.

    Attributes:
        files: N paths, or numbers where pictures were given that are no files.
        classes: C names.
        masks: class numbers [H, W] of each picture, uint8 (uint16 of more than 256 classes); None
            where it could not be read, or where `predict_into` has written them.
        shares: float64 [N, C]: of the pixels of a picture; NaN where it could not be read.
        problems: reason by file, of those that could not be read.
        written: of each picture, its mask and overlay below the folder; None where there are none.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    masks: tuple[np.ndarray | None, ...]
    shares: np.ndarray
    problems: dict[str, str]
    written: tuple[tuple[str, str] | None, ...]

    def table(self) -> dict[str, list[Any]]:
        """Return columns of one row per picture: file, mask, overlay, shares, problem."""
        columns: dict[str, list[Any]] = {"file": list(self.files)}
        for place, name in enumerate(("mask", "overlay")):
            columns[name] = [None if pair is None else pair[place] for pair in self.written]
        for number, name in enumerate(self.classes):
            shares = self.shares[:, number].tolist()
            columns[f"share_{name}"] = [None if np.isnan(share) else share for share in shares]
        columns["problem"] = [self.problems.get(file, "") for file in self.files]
        return columns


class TrainedSegmenter:
    """A segmenter, and how pictures become its input; see `fcmae.load`.

    Attributes:
        network: [N, C, H, W] -> logits [N, classes, H, W], in evaluation mode, on `device`.
        info: what the file records of it.
        classes: names of the classes.
        device: where it computes.
    """

    def __init__(self, network: nn.Module, info: SegmenterInfo, device: torch.device) -> None:
        assert info.classes is not None
        self.network = network.to(device)
        self.info = info
        self.classes = info.classes
        self.device = device

    def predict(
        self,
        images: Images,
        *,
        batch_size: int = 8,
        workers: int = 0,
        is_bar_shown: bool = False,
    ) -> MaskPredictions:
        """Return a class for every pixel of every picture, in the order given.

        Args:
            images: a folder or file, several, or pictures: arrays [H, W] or [H, W, C] (or N of
                them in one) with values as files have them, or pictures of Pillow.
            batch_size: tiles at a time; changes no number but the last digits.
            workers: pictures that are read ahead.
            is_bar_shown: draw a progress bar on stderr.

        Raises:
            DataError: no pictures, or none that can be read.
        """
        return self._predict(images, None, batch_size, workers, is_bar_shown)

    def embed(self, images: Images, **how: Any) -> Features:
        """Raise ConfigError: a segmenter's encoder is asked by the run that it started from."""
        raise ConfigError(
            "embed: these weights are a segmenter's, which has a class per pixel and no features "
            "of whole images; name the run of its encoder."
        )

    def predict_into(
        self,
        folder: Path,
        images: Images,
        *,
        batch_size: int = 8,
        workers: int = 0,
        is_bar_shown: bool = False,
    ) -> MaskPredictions:
        """Write masks/NAME.png and overlays/NAME.png below `folder`; return the rest.

        Masks hold class numbers, in the order of `classes`, with a colour for each as a palette.
        Pictures of folders keep their folders. Arguments as of `predict`.

        Raises:
            DataError: as `predict`.
            OSError: a file cannot be written.
        """
        return self._predict(images, folder, batch_size, workers, is_bar_shown)

    def _predict(
        self, images: Images, folder: Path | None, batch_size: int, workers: int, is_bar_shown: bool
    ) -> MaskPredictions:
        with as_files(images, self.info.reading()) as (listed, names):
            listed, info = with_masks(listed, self.info)
            shown = tuple(listed.paths) if names is None else names
            places = output_names(shown)
            size = self.info.tile_size or self.info.image_size
            tiling = Tiling(size, self.info.tile_overlap, batch_size)
            normalise = Normalisation(self.info.mean, self.info.std)
            masks: list[np.ndarray | None] = []
            written: list[tuple[str, str] | None] = []
            shares = np.full((len(listed), len(self.classes)), np.nan)
            problems: dict[str, str] = {}
            pictures = progress_bar(
                _read_ahead(listed, info.reading(), workers),
                unit="picture",
                total=len(listed),
                is_shown=is_bar_shown,
            )
            with pictures:
                for index, found in enumerate(pictures):
                    if isinstance(found, str):
                        problems[shown[index]] = found
                        masks.append(None)
                        written.append(None)
                        continue
                    mask = self._classify(found, normalise, tiling)
                    counts = np.bincount(mask.ravel(), minlength=len(self.classes))
                    shares[index] = counts / mask.size
                    masks.append(mask if folder is None else None)
                    written.append(
                        None if folder is None else self._write(mask, found, folder, places[index])
                    )
        check_some_used(len(shown), problems)
        return MaskPredictions(shown, self.classes, tuple(masks), shares, problems, tuple(written))

    def _classify(self, picture: Decoded, normalise: Normalisation, tiling: Tiling) -> np.ndarray:
        """Return the class numbers of a picture [H, W]."""
        kind = np.uint8 if len(self.classes) <= MOST_BYTE_CLASSES else np.uint16
        mask = np.empty(picture.image.shape[-2:], kind)
        for band in predict_bands(self.network, picture, normalise, tiling, self.device):
            rows = band.probabilities.argmax(dim=0).numpy().astype(kind)
            mask[band.top : band.top + len(rows)] = rows
        return mask

    def _write(
        self, mask: np.ndarray, picture: Decoded, folder: Path, name: str
    ) -> tuple[str, str]:
        """Write a mask and its overlay; return their places below `folder`."""
        colours = np.round(255 * class_colours(len(self.classes))).astype(np.uint8)
        image = Image.fromarray(mask)
        if mask.dtype == np.uint8:
            image.putpalette(colours.ravel().tolist())  # mode P: indices, and colours to see them
        _save(image, folder / MASKS / name)
        _save(Image.fromarray(overlay(mask, picture.image, colours)), folder / OVERLAYS / name)
        return f"{MASKS}/{name}", f"{OVERLAYS}/{name}"


def overlay(mask: np.ndarray, image: Tensor, colours: np.ndarray) -> np.ndarray:
    """Return the grey picture with its classes' colours over it: uint8 [h, w, 3].

    Pixels are left out of pictures with a side above MOST_OVERLAY_PX.

    Args:
        mask: class numbers [H, W].
        image: [C, H, W], uint8 or float32 in 0..1; the first three channels are looked at.
        colours: uint8 [classes, 3].
    """
    step = max(1, -(-max(mask.shape) // MOST_OVERLAY_PX))
    mask, image = mask[::step, ::step], image[:3, ::step, ::step]
    laid = np.empty((*mask.shape, 3), np.uint8)
    for top in range(0, len(mask), ROWS_AT_ONCE):
        rows = slice(top, top + ROWS_AT_ONCE)
        grey = 255 * to_float(image[:, rows]).mean(dim=0).numpy()[..., None]
        laid[rows] = np.round(OVERLAY * colours[mask[rows]] + (1 - OVERLAY) * grey)
    return laid


def output_names(files: Sequence[str]) -> list[str]:
    """Return a different name NAME.png for each file: its path below the folder of them all."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    common = os.path.commonpath(folders) if folders else ""
    inside = [os.path.relpath(os.path.abspath(f), common).replace("::", "-") for f in files]
    stems = [os.path.splitext(name)[0] for name in inside]
    count = Counter(stems)
    # Of a.jpg and a.png neither is a.png.
    named = [
        f"{stem if count[stem] == 1 else name}.png"
        for stem, name in zip(stems, inside, strict=True)
    ]
    often = Counter(named)
    return [
        name if often[name] == 1 else f"{index}-{Path(name).name}"
        for index, name in enumerate(named)
    ]


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda partial: image.save(partial, format="PNG", compress_level=3))


def _read_ahead(listed: ImageList, reading: Any, workers: int) -> Iterator[Decoded | str]:
    """Yield each picture in its order, or why it cannot be used; `workers` are read ahead."""

    def read(path: str) -> Decoded | str:
        try:
            check_range(path, reading)
            return decode(path, reading)
        except UndecodableImageError as error:
            return error.reason

    if workers == 0:
        yield from map(read, listed.paths)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[Decoded | str]] = []
        for path in listed.paths:
            waiting.append(pool.submit(read, path))
            if len(waiting) > workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
