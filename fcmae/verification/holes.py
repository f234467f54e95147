"""Pictures with pixels without data, from their files to the loss of a model."""

import copy
import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcmae.data import (
    Normalisation,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    collate,
    find_images,
)
from fcmae.data.holes import without_masks
from fcmae.model.autoencoder import FCMAE
from fcmae.model.patches import patchify
from fcmae.runs.durable import write_bytes

NUM_IMAGES = 2
ENLARGED = 1.5  # sides of the files beside those of the images, so that crops are scaled


class Outcome(NamedTuple):
    """What a model makes of the pictures.

    Attributes:
        features: of the visible patches.
        predictions: of all patches.
        loss: scalar.
        unscored_gradient: of the loss by each predicted value that has no data in the picture.
    """

    features: Tensor
    predictions: Tensor
    loss: Tensor
    unscored_gradient: Tensor


def run(model: FCMAE, value: float, device: torch.device) -> Outcome:
    """Write random pictures that hold `value` where they have no data, read them, run the model.

    It runs on `device`; what it makes of them comes back to the CPU.

    Raises:
        DataError: the grid is too small to show patches, hide some and leave some out.
    """
    model = copy.deepcopy(model).to(device)
    with tempfile.TemporaryDirectory() as folder:
        batch = _read(model, Path(folder), value)
    features: list[Tensor] = []
    model.sparse_encoder.register_forward_hook(lambda _, __, found: features.append(found))
    normalise = Normalisation((0.5,) * model.in_chans, (0.25,) * model.in_chans)
    valid = batch["valid"]
    # The reader has put 0 there; the model must not depend on it.
    images = torch.where(valid, normalise(batch["image"]), value)
    out = model(images.to(device), batch["visible"], valid=valid)
    out.hidden_prediction.retain_grad()
    out.loss.backward()
    gradient = out.hidden_prediction.grad
    assert gradient is not None
    # What the model says of itself would not show that it counts too much.
    has_data = patchify(valid.expand_as(images), model.patch_size)
    index = out.hidden.unsqueeze(-1).expand_as(gradient)
    unscored = gradient.masked_select(~has_data.to(device).gather(1, index))
    found = (features[0], out.prediction, out.loss, unscored)
    return Outcome(*(values.detach().cpu() for values in found))


def _read(model: FCMAE, folder: Path, value: float) -> dict[str, Any]:
    """Return a batch of crops of pictures whose corner and some spots have no data."""
    rng = np.random.default_rng(0)
    height, width = (round(ENLARGED * side) for side in model.image_size)
    for number in range(NUM_IMAGES):
        pixels = rng.random((height, width, model.in_chans), dtype=np.float32)
        valid = np.ones((height, width), np.uint8)
        valid[: height * 4 // 10, : width * 4 // 10] = 0
        for _ in range(3):
            top, left = rng.integers(height), rng.integers(width)
            valid[top : top + 3, left : left + 2] = 0
        pixels[valid == 0] = value
        for name, array in ((f"{number}.npy", pixels), (f"{number}-valid.npy", valid)):
            stream = io.BytesIO()
            np.save(stream, array)
            write_bytes(folder / name, stream.getvalue())
    reading = Reading(in_chans=model.in_chans, valid_mask="{stem}-valid.npy")
    augmentation = PretrainAugmentation(model.image_size, crop_scale=(0.8, 1.0), vertical_flip=True)
    dataset = PretrainDataset(
        without_masks(find_images(str(folder)), reading),
        augmentation,
        seed=0,
        reading=reading,
        num_patches=model.num_patches,
        mask_ratio=model.mask_ratio,
        patch_size=model.patch_size,
        min_valid=model.min_valid,
    )
    return collate([dataset[0, index] for index in range(NUM_IMAGES)])
