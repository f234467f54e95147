"""What `auto` means in a fine-tuning: a rule per setting, by the number of labels and of steps.

The experiments, what they cannot tell, and how far the rules stay behind the best setting that was
found on images that chose none of them: docs/recipes.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fcmae.data import ImageList, Reading
from fcmae.data.quick_look import QuickLook
from fcmae.evaluation import MOST_CLASSES
from fcmae.finetuning.setup import brings_classifier, size_of_weights, starts_of
from fcmae.model.structure import STRIDES
from fcmae.settings.auto import is_auto
from fcmae.settings.finetune import FinetuneConfig
from fcmae.training.auto import Choices, choose_flips, size_by_pictures
from fcmae.training.schedule import peak_lr

MANY_LABELS = 20_000  # from here on the paper's ImageNet recipe is the nearer one
EPOCHS = 30
FEWEST_STEPS, MOST_STEPS = 300, 4000
LARGEST_BATCH = 32
PEAK_LR = 5e-4  # absolute, of LARGEST_BATCH images
# Fewer steps than these change the features without finding the classes in them again. They begin
# with the classes as a linear probe has them, at a rate that keeps what it knows.
FEW_STEPS = 100
NEAR_PEAK_LR = 2e-5
MOST_NEAR = 2.0  # factor above it at which a probe is lost
WARMUP_SHARE = 0.1
LAYER_DECAY = 0.9
EMA_FROM_STEPS = 2000


def usual_peak(effective_batch: int, head_start: str = "random") -> float:
    """Return the absolute peak rate: rises as the root of the batch, low from a probe."""
    rate = NEAR_PEAK_LR if head_start == "probe" else PEAK_LR
    return rate * math.sqrt(effective_batch / LARGEST_BATCH)


def batch_for(num_labels: int, parts: int) -> int:
    """Return the images of each of so many parts of a step: a power of two that labels allow."""
    return 2 ** int(math.log2(max(1, min(LARGEST_BATCH, num_labels // parts))))


def steps_for(num_labels: int, effective_batch: int) -> int:
    """Return the steps of a fine-tuning that is given no length: some epochs, within bounds."""
    steps = round(EPOCHS * num_labels / effective_batch)
    return min(max(steps, FEWEST_STEPS), MOST_STEPS)


def why_no_probe(config: FinetuneConfig, train: ImageList) -> str | None:
    """Return why no run, however short, should start its classifier as a probe; None: it may."""
    classes, labels = train.classes or (), len(set(train.paths))
    if config.model.weights is None:
        return "from scratch there are no features to probe"
    if config.model.head_init_scale is not None:
        return "model.head_init_scale says how it is drawn"
    if brings_classifier(config, classes):
        return "model.weights bring a classifier of these classes"
    if len(classes) > MOST_CLASSES:
        return f"more than {MOST_CLASSES} classes"
    return f"{labels:,} labels" if labels >= MANY_LABELS else None


def choose_size(
    choices: Choices,
    starts: Sequence[str],
    otherwise: Callable[[], tuple[int, str]],
    multiple: int = 1,
) -> None:
    """Choose the image size: what the weights were trained on, the largest of several.

    Args:
        choices: of the run.
        starts: the weights that it, and what it is compared with, begin with.
        otherwise: returns a size, and why, for weights that do not say one, and for none at all.
        multiple: of which sides must be, px.
    """
    if not is_auto(choices.config, "data.image_size"):
        return
    said = [size_of_weights(start) for start in starts]
    found = [(size, "as model.weights say") for size in said if size is not None]
    if not said or None in said:
        size, why = otherwise()
        found.append(((size, size), why))
    sides, why = max(found, key=lambda one: math.prod(one[0]))
    height, width = (-(-side // multiple) * multiple for side in sides)
    choices.choose("data.image_size", height if height == width else (height, width), why)


def choose_before_length(
    config: FinetuneConfig,
    train: ImageList,
    reading: Reading,
    variant: str,
    processes: int = 1,
    starts: Sequence[str] | None = None,
) -> Choices:
    """Return the settings with everything chosen that does not depend on the number of steps.

    Args:
        config: as given.
        train: the labelled training images.
        reading: how they are read.
        variant: what model.name is, where it is left open.
        processes: that train together.
        starts: all weights of a comparison; None: model.weights alone.
    """
    choices = Choices(config)
    labels = len(set(train.paths))
    few = labels < MANY_LABELS
    said = f"{labels:,} labels"
    choices.choose("model.name", variant, "as model.weights say")
    look = QuickLook(train, reading, by_class=True)
    choose_size(
        choices,
        starts_of(config) if starts is None else starts,
        lambda: size_by_pictures(look, STRIDES * config.model.stem_stride),
    )
    why = why_no_probe(config, train) if is_auto(config, "model.head_start") else None
    if why is not None:
        choices.choose("model.head_start", "random", why)
    batch = batch_for(len(train), config.train.accumulate * processes)
    choices.choose("train.batch_size", batch, f"{said}, {LARGEST_BATCH} at most")
    choices.choose("augment.crop_scale", (0.4, 1.0) if few else (0.08, 1.0), said)
    choose_flips(choices, "augment", look)
    policy = None if few or config.data.in_chans not in (1, 3) else "rand-m9-mstd0.5-inc1"
    if config.augment.color_jitter > 0:
        policy = None
    choices.choose("augment.rand_augment", policy, said)
    choices.choose("augment.reprob", 0.0 if few else 0.25, said)
    is_even = choices.config.train.batch_size % 2 == 0
    choices.choose("augment.mixup", 0.0 if few or not is_even else 0.8, said)
    choices.choose("augment.cutmix", 0.0 if few or not is_even else 1.0, said)
    choices.choose("augment.smoothing", 0.1, "the paper's")
    choices.choose("model.drop_path", 0.0 if few else 0.1, said)
    choices.choose("optim.weight_decay", 0.05, "the paper's")
    choices.choose("optim.schedule", "cosine", "the paper's")
    return choices


def choose_after_length(choices: Choices, total_steps: int, effective_batch: int) -> None:
    """Choose what depends on the number of steps."""
    steps = f"{total_steps:,} steps of {effective_batch} images"
    head_start = "random"
    if isinstance(choices.config, FinetuneConfig):
        _choose_head_start(choices, total_steps, effective_batch)
        head_start = choices.config.model.head_start
    rate = usual_peak(effective_batch, head_start)
    if is_auto(choices.config, "compare.scratch_base_lr"):  # nothing there is to be kept
        is_low = is_auto(choices.config, "optim.base_lr") and head_start == "probe"
        usual = _base_lr(usual_peak(effective_batch), effective_batch) if is_low else None
        choices.set({"compare.scratch_base_lr": usual})
    base = _base_lr(rate, effective_batch)
    choices.choose("optim.base_lr", base, f"a peak rate of {rate:.2g} for {steps}")
    is_pretrained = choices.config.model.weights is not None
    if is_pretrained:
        choices.choose("optim.layer_decay", LAYER_DECAY, "pretrained first layers change less")
    else:
        choices.choose("optim.layer_decay", 1.0, "from scratch every layer must learn")
    choices.settle_warmup(
        round(WARMUP_SHARE * total_steps), f"{100 * WARMUP_SHARE:.0f} % of the run"
    )
    is_long = total_steps >= EMA_FROM_STEPS
    decay = round(1 - 10 / total_steps, 5) if is_long else None
    choices.choose("ema.decay", decay, f"{EMA_FROM_STEPS:,} steps or more average the last tenth")


def _base_lr(peak: float, effective_batch: int) -> float:
    """Return the rate per 256 images, as a person would write it."""
    return float(f"{peak * 256 / effective_batch:.3g}")


def _choose_head_start(choices: Choices, total_steps: int, effective_batch: int) -> None:
    """Choose where the classifier starts, unless it was chosen before the length.

    Source: Kumar et al. 2022 (arXiv:2202.10054), linear probing then fine-tuning.
    """
    config = choices.config
    start, why = "probe", f"fewer than {FEW_STEPS} steps do not find the classes by themselves"
    if total_steps >= FEW_STEPS:
        start, why = "random", f"{FEW_STEPS} steps or more find the classes by themselves"
    elif not is_auto(config, "optim.base_lr"):
        peak = peak_lr(config.optim.base_lr, effective_batch)
        if peak > MOST_NEAR * usual_peak(effective_batch, "probe"):
            start, why = "random", f"optim.base_lr, a peak rate of {peak:.2g}, would undo a probe"
    choices.choose("model.head_start", start, why)
