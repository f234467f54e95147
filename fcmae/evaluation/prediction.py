"""A trained model as others use it: what it says of new images, read and cut as in its own run.

What a file records decides: channels, range, mean, size, crop, classes. Nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.convnext import ConvNeXt

from fcmae.data import EvaluationDataset
from fcmae.data.decoding import Decoded, decode
from fcmae.data.loading import make_loader
from fcmae.data.order import in_order
from fcmae.errors import ConfigError
from fcmae.evaluation.features import (
    Features,
    evaluation_loader,
    extract_features,
    transform_of,
    with_masks,
)
from fcmae.evaluation.given_images import Images, as_files, check_range, check_some_used
from fcmae.evaluation.mask_prediction import TrainedSegmenter
from fcmae.runs.terminal import progress_bar
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.segmenter import load_segmenter, segmenter_file
from fcmae.weights.sources import open_source
from sparse.whole import native_blocks


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of images, in their order; images that cannot be read are among them.

    Attributes:
        files: N paths, or numbers where pictures were given that are no files.
        classes: C names.
        probabilities: float32 [N, C]; NaN for an image that could not be read.
        problems: reason by file, of those that could not be read.
    """

    files: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    problems: dict[str, str]

    @property
    def labels(self) -> list[str | None]:
        """Name of the most probable class of each image; None where it could not be read."""
        readable = ~np.isnan(self.probabilities[:, 0])
        best = np.where(readable[:, None], self.probabilities, 0).argmax(axis=1)
        return [
            self.classes[index] if is_readable else None
            for index, is_readable in zip(best, readable, strict=True)
        ]

    def table(self, top: int | None = None) -> dict[str, list[Any]]:
        """Return columns of one row per image: file, class, probabilities, problem.

        Args:
            top: the so many most probable classes and their probabilities, instead of all.
        """
        columns: dict[str, list[Any]] = {"file": list(self.files)}
        readable = ~np.isnan(self.probabilities[:, 0])
        if top is None:
            columns["class"] = self.labels
            for index, name in enumerate(self.classes):
                column = self.probabilities[:, index].tolist()
                columns[f"p_{name}"] = _where(readable, column)
        else:
            order = np.argsort(-self.probabilities, axis=1, kind="stable")
            for place in range(min(top, len(self.classes))):
                chosen = order[:, place]
                names = [self.classes[index] for index in chosen]
                shares = self.probabilities[np.arange(len(chosen)), chosen].tolist()
                columns[f"class_{place + 1}"] = _where(readable, names)
                columns[f"probability_{place + 1}"] = _where(readable, shares)
        columns["problem"] = [self.problems.get(file, "") for file in self.files]
        return columns


class TrainedModel:
    """An encoder or a classifier, and how images become its input; see `load`.

    Attributes:
        network: timm's model, in evaluation mode, on `device`.
        info: what the file records of it.
        classes: names of the outputs; None of an encoder.
        device: where it computes.
    """

    def __init__(self, network: ConvNeXt, info: EncoderInfo, device: torch.device) -> None:
        self.network = network.to(device)
        self.info = info
        self.classes = info.classes
        self.device = device

    def predict(
        self,
        images: Images,
        *,
        batch_size: int = 32,
        workers: int = 0,
        is_bar_shown: bool = False,
    ) -> Predictions:
        """Return the probability of each class for every image, in the order given.

        Args:
            images: a folder or file, several, or pictures: arrays [H, W] or [H, W, C] (or N of
                them in one) with values as files have them, or pictures of Pillow.
            batch_size: images at a time; changes no number.
            workers: reading processes.
            is_bar_shown: draw a progress bar on stderr.

        Raises:
            ConfigError: an encoder, which has no classes.
            DataError: no images, or none that can be read.
        """
        if self.classes is None:
            raise ConfigError(
                "predict: these weights are an encoder's, which has no classes; `fcmae embed` or "
                "embed() gives its features, `fcmae finetune` makes a classifier of it."
            )
        with as_files(images, self.info.reading()) as (listed, names):
            listed, info = with_masks(listed, self.info)
            dataset = _Checked(listed, transform_of(info), reading=info.reading())
            batches = in_order(len(listed), batch_size)
            loader = make_loader(dataset, batches, workers)
            probabilities = np.full((len(listed), len(self.classes)), np.nan, np.float32)
            problems: dict[str, str] = {}
            bar = progress_bar(loader, unit="batch", total=len(batches), is_shown=is_bar_shown)
            with torch.no_grad(), native_blocks(self.network), bar:
                for batch in bar:
                    problems |= dict(batch["skipped"])
                    if batch["path"]:
                        logits = self.network(batch["image"].to(self.device))
                        shares = logits.float().softmax(dim=1).cpu().numpy()
                        probabilities[batch["index"].numpy()] = shares
            paths = listed.paths
            check_some_used(len(paths), problems)
            shown = tuple(paths) if names is None else names
            by_name = {
                shown[index]: problems[path] for index, path in enumerate(paths) if path in problems
            }
        return Predictions(shown, self.classes, probabilities, by_name)

    def embed(self, images: Images, *, batch_size: int = 32, workers: int = 0) -> Features:
        """Return one vector per image that can be read: the mean of the last feature map.

        Arguments as of `predict`.

        Raises:
            DataError: no images, or none that can be read.
        """
        with as_files(images, self.info.reading()) as (listed, names):
            listed, info = with_masks(listed, self.info)
            loader = evaluation_loader(listed, info, batch_size=batch_size, workers=workers)
            found = extract_features(self.network, loader, self.device)
            if names is None:
                return found
            named = dict(zip(listed.paths, names, strict=True))
            return dataclasses.replace(
                found,
                paths=tuple(named[path] for path in found.paths),
                skipped=tuple((named[path], reason) for path, reason in found.skipped),
            )


def load(
    source: str | Path, device: str | torch.device = "auto"
) -> TrainedModel | TrainedSegmenter:
    """Return the model of a run folder, of a file or folder that was exported from one.

    Of a fine-tuning it is the classifier or the segmenter with the best score, of a pretraining
    the encoder.

    Args:
        source: run folder, weights file or folder of timm.
        device: auto takes a GPU where there is one.

    Raises:
        ConfigError: a run whose settings cannot be read, or weights that do not say how images
            become their input.
        CheckpointError: unreadable or incomplete weights.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if segmenter_file(source) is not None:
        network, info = load_segmenter(source)
        return TrainedSegmenter(network, info, torch.device(device))
    found = open_source(source)
    if found.info is None:
        raise ConfigError(
            f"{source}: does not say how images become its input (size, mean, channels); name a "
            "run, or a file that `fcmae export` or a run wrote."
        )
    return TrainedModel(found.build_model(), found.info, torch.device(device))


def _where(readable: np.ndarray, values: Sequence[Any]) -> list[Any]:
    return [value if is_one else None for value, is_one in zip(values, readable, strict=True)]


class _Checked(EvaluationDataset):
    """Leaves out files whose type cannot hold the values that the model was trained on."""

    def decoded(self, path: str) -> Decoded:
        """Return the picture; raises UndecodableImageError also for another range of values."""
        check_range(path, self.reading)
        return decode(path, self.reading, self.transform.choose_part)
