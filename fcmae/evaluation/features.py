"""One vector per image from a frozen encoder, and from raw pixels as the trivial baseline."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcmae.data import (
    EvaluationDataset,
    EvaluationTransform,
    ImageList,
    Loader,
    in_order,
    make_loader,
)
from fcmae.data.holes import has_masks, without_masks
from fcmae.data.transfer import DeviceBatches
from fcmae.errors import DataError
from fcmae.runs.terminal import progress_bar
from fcmae.weights.encoder_info import EncoderInfo
from sparse.whole import native_blocks

THUMBNAIL_SIDE_PX = 32

# An encoder, or a function of images [N, C, H, W] and where they have data, [N, 1, H, W] or None.
Describer = nn.Module | Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Features:
    """What one describer says about a set of images.

    Attributes:
        vectors: float32 [N, D], on the CPU.
        labels: LongTensor [N], -1 where there is no label.
        paths: N files, in the order of the vectors.
        skipped: (path, reason) of the files that could not be decoded; they have no vector.
        num_with_holes: images with pixels without data, which are filled as in training.
    """

    vectors: Tensor
    labels: Tensor
    paths: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    num_with_holes: int = 0

    def holes_sentence(self) -> str:
        """Say how many images have pixels without data, and what is made of these."""
        return (
            f"{self.num_with_holes} of {len(self.paths)} images have pixels without data, which "
            "are filled as in training."
        )


def with_masks(images: ImageList, info: EncoderInfo) -> tuple[ImageList, EncoderInfo]:
    """Return the images that are no masks, and how they are read.

    Masks beside the pictures are a matter of the folder: where none of these images has one, all
    of their pixels count.
    """
    reading = info.reading()
    if not has_masks(images, reading):
        return images, dataclasses.replace(info, valid_mask=None)
    return without_masks(images, reading), info


def evaluation_loader(
    images: ImageList, info: EncoderInfo, *, batch_size: int = 32, workers: int = 0
) -> Loader:
    """Return batches of every image once, in order, prepared as the encoder expects them.

    Args:
        images: to read.
        info: size, channels, normalisation, value range, and what marks pixels without data.
        batch_size: images at a time; changes no number.
        workers: reading processes.
    """
    dataset = EvaluationDataset(images, transform_of(info), reading=info.reading())
    return make_loader(dataset, in_order(len(images), batch_size), workers)


def transform_of(info: EncoderInfo) -> EvaluationTransform:
    """Return how images become the encoder's input."""
    return EvaluationTransform(
        info.image_size, mean=info.mean, std=info.std, crop_pct=info.crop_pct
    )


def extract_features(
    encoder: nn.Module, loader: Iterable[dict[str, Any]], device: torch.device | str = "cpu"
) -> Features:
    """Return the encoder's features of every image that `loader` yields; see `pooled_features`.

    Runs in evaluation mode without gradients and leaves every module's mode as it was.

    Args:
        encoder: a dense timm ConvNeXt, on `device`.
        loader: batches as `fcmae.data.collate` makes them.
        device: where the images are sent.

    Raises:
        DataError: no image could be decoded.
    """
    return extract_together({"encoder": encoder}, loader, device)["encoder"]


def extract_together(
    describers: Mapping[str, Describer],
    loader: Iterable[dict[str, Any]],
    device: torch.device | str = "cpu",
) -> dict[str, Features]:
    """Return the features of several describers, decoding every image once.

    Args:
        describers: dense timm ConvNeXts, or functions of images [N, C, H, W] and of where these
            have data, bool [N, 1, H, W] or None, giving [N, D].
        loader: batches as `fcmae.data.collate` makes them.
        device: where the encoders are and the images are sent.

    Raises:
        DataError: no image could be decoded.
    """
    vectors: dict[str, list[Tensor]] = {name: [] for name in describers}
    labels: list[Tensor] = []
    paths: list[str] = []
    skipped: list[tuple[str, str]] = []
    num_with_holes = 0
    encoders = [item for item in describers.values() if isinstance(item, nn.Module)]
    with evaluating(*encoders), torch.no_grad():
        shown = progress_bar(loader, unit="batch", title="features", is_brief=True)
        batches = DeviceBatches(shown, torch.device(device))
        for batch, on_device in batches:
            skipped += batch["skipped"]
            if not batch["path"]:  # nothing in it could be decoded
                continue
            images, valid = on_device["image"], on_device.get("valid")
            found = [
                pooled_features(describer, images)
                if isinstance(describer, nn.Module)
                else describer(images, valid)
                for describer in describers.values()
            ]
            batches.read_ahead()  # before the host waits for what it asked for
            for name, described in zip(describers, found, strict=True):
                vectors[name].append(described.float().cpu())
            if "valid" in batch:
                num_with_holes += int((~batch["valid"]).flatten(1).any(dim=1).sum())
            labels.append(batch["label"])
            paths += batch["path"]
    if not paths:
        first = f"; the first is {skipped[0][0]!r}: {skipped[0][1]}" if skipped else ""
        raise DataError(f"none of the {len(skipped)} images could be decoded{first}.")
    return {
        name: Features(
            torch.cat(parts), torch.cat(labels), tuple(paths), tuple(skipped), num_with_holes
        )
        for name, parts in vectors.items()
    }


def pooled_features(encoder: Any, images: Tensor) -> Tensor:
    """Return the mean over the last feature map: images [N, C, H, W] -> [N, D].

    timm's norm after the pooling (`head.norm`) is left out: pretraining does not train it.
    """
    with native_blocks(encoder):
        return encoder.forward_features(images).mean(dim=(2, 3))


def thumbnails(images: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return images shrunk to 32 x 32 px by averaging, flattened: [N, C, H, W] -> [N, C * 1024].

    Sides below 32 px stay as they are. Where images have no data (`valid`) they hold 0.
    """
    height, width = (min(side, THUMBNAIL_SIDE_PX) for side in images.shape[2:])
    return F.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Switch modules to evaluation mode inside; every submodule gets its own mode back."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, is_training in modes:
            part.training = is_training
