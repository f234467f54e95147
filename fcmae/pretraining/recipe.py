"""What `auto` means in a pretraining: a rule per setting, each with the experiment behind it.

The experiments, what they cannot tell, and how far the rules stay behind the best setting that was
found on images that chose none of them: docs/recipes.md.
"""

from __future__ import annotations

import math

from fcmae.data import ImageList, Reading
from fcmae.data.quick_look import QuickLook
from fcmae.data.splits import hold_out
from fcmae.model.structure import patch_for, unit_of, variant_for, with_structure
from fcmae.settings.auto import is_auto
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.sections import image_height_width
from fcmae.training.auto import Choices, choose_flips, size_by_pictures
from fcmae.training.remarks import length_remarks, rate_remarks
from fcmae.training.schedule import Schedule, steps_of
from fcmae.weights.sources import metadata_of

DEFAULT_TIME = "20min"
REFERENCE_BATCH = 32
PEAK_LR = 3e-4  # absolute, of REFERENCE_BATCH images
MOST_ENLARGED = 3.0  # pictures enlarged further were not measured
WARMUP_SHARE = 0.1
LONGEST_WARMUP = 2000  # steps, about the paper's 40 epochs of 1.28 million images at 4096
WEIGHT_DECAY = 0.05
SCHEDULE = "wsd"
CROP_SCALE = (0.4, 1.0)


def peak_rate(batch: int, enlarged: float = 1.0) -> float:
    """Return the absolute peak rate of a batch: rises as its root, 3.4e-3 at the paper's 4096.

    The published recipe scales by the batch itself, 2.4e-3 at 4096 and 1.9e-5 at 32.

    Args:
        batch: images of a step.
        enlarged: side of an image over that of the picture it is made of. Small pictures, which are
            enlarged, had better features by a lower rate: docs/recipes.md.
    """
    return PEAK_LR * math.sqrt(batch / REFERENCE_BATCH) / min(max(enlarged, 1.0), MOST_ENLARGED)


def warmup_steps(steps: int) -> int:
    """Return the steps of the linear warm-up: a tenth of the run."""
    return min(round(WARMUP_SHARE * steps), LONGEST_WARMUP)


def choose_before_length(
    config: PretrainConfig, images: ImageList, effective_batch: int
) -> Choices:
    """Return the settings with everything chosen that does not depend on the number of steps.

    Args:
        config: as given.
        images: all of them, those that will be held out included.
        effective_batch: images of a step.
    """
    choices = Choices(config)
    count = len(images)
    start = config.model.init_from
    if start is not None and is_auto(config, "model.name"):
        known = metadata_of(start).get("model_name")
        if known is not None:
            choices.choose("model.name", known, "as model.init_from say")
    choices.choose("model.name", variant_for(count), f"what {count:,} images can fill")
    look = QuickLook(images, Reading.of_settings(config.data))
    if is_auto(config, "data.image_size"):
        choices.choose("data.image_size", *size_by_pictures(look, unit_of(config)))
    size = choices.config.data.image_size
    side = min(image_height_width(size))
    patch = patch_for(size, config.model.stem_stride)
    across = side // patch
    choices.choose("mask.patch_size", patch, f"{across} patches along the shorter side")
    choices.choose(
        "data.crop_scale", CROP_SCALE, "docs/recipes.md; lower where objects differ much in size"
    )
    choose_flips(choices, "data", look)
    choices.choose("optim.weight_decay", WEIGHT_DECAY, "the paper's")
    choices.choose("optim.schedule", SCHEDULE, "as good as cosine, and extends to longer runs")
    if is_auto(config, "optim.base_lr"):
        median = look.median_side
        _choose_rate(choices, effective_batch, side / median if median else 1.0)
    return choices


def _choose_rate(choices: Choices, effective_batch: int, enlarged: float = 1.0) -> None:
    rate = peak_rate(effective_batch, enlarged)
    why = f"a peak rate of {rate:.2g} for {effective_batch} images"
    if enlarged > 1:
        why += f" that are enlarged {enlarged:.2g} times"
    choices.choose("optim.base_lr", float(f"{rate * 256 / effective_batch:.3g}"), why)


def choose_after_length(choices: Choices, total_steps: int) -> None:
    """Choose what depends on the number of steps."""
    share = f"{100 * WARMUP_SHARE:.0f} % of {total_steps:,} steps, {LONGEST_WARMUP:,} at most"
    choices.settle_warmup(warmup_steps(total_steps), share)


def remarks(config: PretrainConfig, num_images: int, effective_batch: int) -> list[str]:
    """Return a sentence for each thing that stands out in the settings of a run.

    Args:
        config: of the run, with nothing left to a rule.
        num_images: that are trained on.
        effective_batch: images of a step.
    """
    schedule = Schedule(config.train, config.optim, num_images, effective_batch)
    usual = peak_rate(effective_batch)
    return [*length_remarks(schedule, num_images), *rate_remarks(schedule, usual)]


def with_numbers(config: PretrainConfig, num_images: int) -> PretrainConfig:
    """Return settings that a model and a schedule can be made of, without a look at an image.

    For whoever checks a run that another process will make: pictures count as upright and as not
    enlarged, and a run that is given a time as one step, or as its warm-up.
    """
    config = with_structure(config, num_images)
    choices = Choices(config)
    train = config.train
    batch = train.batch_size * train.accumulate
    upright = {"data.horizontal_flip": True, "data.vertical_flip": False, "data.rotate90": False}
    constant = {"data.crop_scale": CROP_SCALE, "optim.weight_decay": WEIGHT_DECAY}
    for name, value in (upright | constant | {"optim.schedule": SCHEDULE}).items():
        choices.choose(name, value, "")
    if train.steps is None and train.epochs is None:
        epochs, warmup = config.optim.warmup_epochs, config.optim.warmup_steps
        given = 1 if is_auto(config, "optim.warmup_steps") else warmup or 1
        least = max(given, steps_of(epochs, num_images, batch) if epochs else 1)
        choices.set({"train.steps": least, "train.time": None})
        train = choices.config.train
    steps = train.steps or steps_of(train.epochs or 0.0, num_images, batch)
    _choose_rate(choices, batch)
    choose_after_length(choices, steps)
    numbered: PretrainConfig = choices.config
    return numbered


def num_trained_on(config: PretrainConfig, images: ImageList) -> int:
    """Return how many of the images are not held out."""
    return len(hold_out(images, config.health, config.train.seed, config.data.group)[0])
