"""What `auto` means in a segmentation: a rule per setting, by the number of images.

What depends on the steps is classification's, which experiments chose; what differs is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

from fcmae.data import Reading
from fcmae.data.quick_look import QuickLook
from fcmae.finetuning.recipe import EPOCHS, FEWEST_STEPS, MOST_STEPS, batch_for, choose_size
from fcmae.finetuning.segmentation.opening import MaskedImages
from fcmae.finetuning.setup import starts_of
from fcmae.model.structure import LARGEST_SIZE_PX
from fcmae.settings.segmentation import SIDE_PX, SegmentationConfig
from fcmae.training.auto import Choices, choose_flips

MANY_IMAGES = 5_000
LARGEST_BATCH = 16
RARE_SHARE = 0.05  # of the pixels: a class that has fewer is drawn on purpose
BALANCED = 0.5


def choose_before_length(
    config: SegmentationConfig,
    images: MaskedImages,
    reading: Reading,
    variant: str,
    processes: int = 1,
    starts: Sequence[str] | None = None,
) -> Choices:
    """Return the settings with everything chosen that does not depend on the number of steps.

    Args:
        config: as given.
        images: with masks.
        reading: how they are read.
        variant: what model.name is, where it is left open.
        processes: that train together.
        starts: all weights of a comparison; None: model.weights alone.
    """
    choices = Choices(config)
    count = len(images.train)
    said = f"{count:,} training images"
    choices.choose("model.name", variant, "as model.weights say")
    choose_size(
        choices,
        starts_of(config) if starts is None else starts,
        lambda: (LARGEST_SIZE_PX, "no weights of yours say another size of crops"),
        multiple=SIDE_PX,
    )
    batch = min(LARGEST_BATCH, batch_for(count, config.train.accumulate * processes))
    choices.choose("train.batch_size", batch, f"{said}, {LARGEST_BATCH} at most")
    choose_flips(choices, "augment", QuickLook(images.train, reading))
    shares = [share for share in images.survey.shares(images.train.paths) if share > 0]
    rarest = min(shares)
    balanced = BALANCED if rarest < RARE_SHARE else 0.0
    why = f"the rarest class has {100 * rarest:.2g} % of the pixels"
    choices.choose("augment.class_balanced", balanced, why)
    choices.choose("model.drop_path", 0.0 if count < MANY_IMAGES else 0.1, said)
    choices.choose("optim.weight_decay", 0.05, "the paper's")
    choices.choose("optim.schedule", "cosine", "the paper's")
    return choices


def steps_for(num_images: int, effective_batch: int) -> tuple[int, str]:
    """Return the steps of a run that is given no length, and why."""
    steps = min(max(round(EPOCHS * num_images / effective_batch), FEWEST_STEPS), MOST_STEPS)
    return (
        steps,
        f"{EPOCHS} epochs of {num_images:,} images, {FEWEST_STEPS} to {MOST_STEPS:,} steps",
    )
