"""The settings of a fine-tuning run; sections shared with pretraining come from config.py."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fcmae.settings.pretrain import (
    MAY_CHANGE,
    CheckpointConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
    check_checkpoint,
    check_optim,
    check_reading,
    check_train,
    image_height_width,
    require,
)


@dataclass(frozen=True, kw_only=True)
class FinetuneDataConfig:
    """Which labelled images, and how they are read."""

    path: str | list[str] = field(metadata=MAY_CHANGE)
    """Folder with one folder per class (or with train/ and val/ of such), or `elpv`."""
    val_path: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of validation images with the same classes; null holds images of `path` back."""
    val_share: float = 0.2
    """Share of each class held back for validation where neither val_path nor val/ exists."""
    split_seed: int = 0
    """Decides which images are held back; the same ones for every train.seed."""
    train_per_class: int | None = None
    """Training images to use of each class, drawn by train.seed; null uses all."""
    label: str | None = None
    """Which labels of `elpv` to learn: `type` (null means it) or `defect`."""
    image_size: int | tuple[int, int] = 224
    """Pixels, one number or [height, width]."""
    in_chans: int = 3
    """Image channels the model takes; grey, colour and alpha files are converted to it."""
    mean: list[float] | None = None
    """Mean per channel of values in 0..1; null: as model.weights say, else ImageNet's (or grey)."""
    std: list[float] | None = None
    """Standard deviation per channel, as `mean`."""
    value_range: tuple[float, float] | None = None
    """Black and white of the files' own values, e.g. [0, 4095] for 12 bit; null: by file type."""
    crop_pct: float = 0.875
    """Share of the resized image's side that evaluation keeps; from 384 px on all is kept."""
    workers: int = field(default=2, metadata=MAY_CHANGE)
    """Processes per training process that read images; 0 reads in the training process."""
    timeout_seconds: float = field(default=600.0, metadata=MAY_CHANGE)
    """Longest wait for one batch before the run stops and says that a reader is stuck."""
    max_skipped_share: float = field(default=0.05, metadata=MAY_CHANGE)
    """Stop when more than this share of the files turned out to be undecodable."""


@dataclass(frozen=True, kw_only=True)
class FinetuneModelConfig:
    """The classifier and the weights it starts from."""

    name: str = "convnextv2_tiny"
    """timm name: convnextv2_{atto..huge} or convnext_*."""
    weights: str | None = field(default=None, metadata=MAY_CHANGE)
    """Weights file of this model, or a run folder; null starts from scratch."""
    stem_stride: int = 4
    """Pixels per cell of the stem, as in pretraining: 4, or 2 or 1 for small images."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block, rising linearly from 0."""
    head_init_scale: float | None = None
    """The classifier starts with deviation 0.02 times this; null: 0.001 with weights, else 1."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of the training images."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the picture's area that a random crop covers."""
    horizontal_flip: bool = True
    """Mirror half of the crops left to right."""
    vertical_flip: bool = False
    """Mirror half of the crops top to bottom; for pictures without an upright direction."""
    rotate90: bool = False
    """Turn crops by a random multiple of 90 degrees; square images only."""
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    """timm's RandAugment, AugMix or AutoAugment policy, on 8-bit grey or colour; null: none."""
    color_jitter: float = 0.0
    """Range of brightness, contrast and saturation changes, where rand_augment is null."""
    reprob: float = 0.25
    """Probability of erasing a random rectangle (noise)."""
    mixup: float = 0.0
    """Alpha of mixup; 0 mixes no images."""
    cutmix: float = 0.0
    """Alpha of cutmix; with mixup, each batch takes one of the two."""
    smoothing: float = 0.1
    """Share of the target spread over all classes."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW, its schedule and layer decay."""

    base_lr: float = 8e-4
    """Learning rate per 256 images; the rate is base_lr * effective batch size / 256."""
    min_lr: float = 1e-6
    """Learning rate, absolute, at the end of the cosine."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging constants."""
    layer_decay: float = 0.9
    """Factor of the learning rate per layer, from the last to the first; 1 is the same for all."""
    layer_decay_assigner: Literal["single", "group"] = "single"
    """What a layer is: each block, or one of 13 groups (the paper's base and large)."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """A moving average of the weights, which is evaluated and exported in their place."""

    decay: float | None = None
    """Share of the old average kept per step, 0.9999 in the paper; null keeps no average."""
    warmup: bool = False
    """Let the share rise from 0 towards decay, for runs too short to forget the first weights."""


@dataclass(frozen=True, kw_only=True)
class FinetuneEvaluateConfig:
    """When the validation images are looked at."""

    every_epochs: float | None = None
    """Epochs between evaluations; at most one of every_epochs and every_steps, none: at the end."""
    every_steps: int | None = None
    """Steps between evaluations."""
    batch_size: int = field(default=64, metadata=MAY_CHANGE)
    """Images per evaluation batch."""
    only: bool = field(default=False, metadata=MAY_CHANGE)
    """Train nothing: evaluate model.weights, or this run's best weights, on the validation set."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Whether pretraining helped: the same fine-tuning from scratch beside it, over seeds."""

    scratch: bool = False
    """Fine-tune from model.weights and from scratch, in folders of run.dir, and compare."""
    seeds: int = 3
    """Runs of each, with train.seed and the seeds that follow it."""
    scratch_base_lr: float | None = None
    """optim.base_lr of the runs from scratch; null takes the same."""
    scratch_layer_decay: float = 1.0
    """optim.layer_decay of the runs from scratch: untrained first layers must learn, too."""


@dataclass(frozen=True, kw_only=True)
class FinetuneLogConfig:
    """What is written while training."""

    every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = field(default=True, metadata=MAY_CHANGE)
    """Write TensorBoard events beside metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings of `fcmae finetune`."""

    run: RunConfig
    data: FinetuneDataConfig
    train: TrainConfig
    model: FinetuneModelConfig = field(default_factory=FinetuneModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: FinetuneEvaluateConfig = field(default_factory=FinetuneEvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    log: FinetuneLogConfig = field(default_factory=FinetuneLogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range or a contradictory pair."""
        check_train(self.train)
        check_optim(self.optim)
        check_checkpoint(self.checkpoint)
        self._check_data()
        self._check_model()
        self._check_augment()
        self._check_evaluate_and_compare()

    def _check_data(self) -> None:
        data = self.data
        check_reading(data)
        require(0 < data.val_share < 1, "data.val_share", data.val_share, "more than 0, below 1")
        require(
            data.train_per_class is None or data.train_per_class >= 1,
            "data.train_per_class",
            data.train_per_class,
            "1 or more, or null",
        )
        require(0 < data.crop_pct <= 1, "data.crop_pct", data.crop_pct, "more than 0, at most 1")

    def _check_model(self) -> None:
        model, optim, ema = self.model, self.optim, self.ema
        require(0 <= model.drop_path < 1, "model.drop_path", model.drop_path, "0 to below 1")
        require(
            model.head_init_scale is None or 0 <= model.head_init_scale < math.inf,
            "model.head_init_scale",
            model.head_init_scale,
            "a finite number of 0 or more, or null",
        )
        require(
            0 < optim.layer_decay <= 1, "optim.layer_decay", optim.layer_decay, "more than 0 to 1"
        )
        require(
            ema.decay is None or 0 < ema.decay < 1,
            "ema.decay",
            ema.decay,
            "more than 0, below 1, or null",
        )

    def _check_augment(self) -> None:
        augment, in_chans = self.augment, self.data.in_chans
        low, high = augment.crop_scale
        require(
            0 < low <= high <= 1,
            "augment.crop_scale",
            list(augment.crop_scale),
            "0 < low <= high <= 1",
        )
        height, width = image_height_width(self.data.image_size)
        require(
            not augment.rotate90 or height == width,
            "augment.rotate90",
            f"true with {height} x {width} px",
            "square images",
        )
        for name, value in (
            ("augment.mixup", augment.mixup),
            ("augment.cutmix", augment.cutmix),
            ("augment.color_jitter", augment.color_jitter),
        ):
            require(0 <= value < math.inf, name, value, "a finite number of 0 or more")
        require(0 <= augment.reprob <= 1, "augment.reprob", augment.reprob, "0 to 1")
        require(0 <= augment.smoothing < 1, "augment.smoothing", augment.smoothing, "0 to below 1")
        require(
            (augment.rand_augment is None and augment.color_jitter == 0) or in_chans in (1, 3),
            "augment.rand_augment, augment.color_jitter",
            f"{augment.rand_augment} and {augment.color_jitter} with {in_chans} channels",
            "null and 0, since both are made for 1 or 3 channels",
        )
        require(
            augment.rand_augment is None or augment.color_jitter == 0,
            "augment.rand_augment, augment.color_jitter",
            f"{augment.rand_augment} and {augment.color_jitter}",
            "at most one of them",
        )
        is_mixing = augment.mixup > 0 or augment.cutmix > 0
        require(
            not is_mixing or self.train.batch_size % 2 == 0,
            "train.batch_size",
            self.train.batch_size,
            "an even number, since mixup and cutmix pair the images of a batch",
        )

    def _check_evaluate_and_compare(self) -> None:
        evaluate, compare, log = self.evaluate, self.compare, self.log
        require(log.every_steps >= 1, "log.every_steps", log.every_steps, "1 or more")
        require(
            evaluate.every_epochs is None or evaluate.every_steps is None,
            "evaluate.every_epochs, evaluate.every_steps",
            f"{evaluate.every_epochs} and {evaluate.every_steps}",
            "at most one of them",
        )
        for name, value in (
            ("evaluate.every_epochs", evaluate.every_epochs),
            ("evaluate.every_steps", evaluate.every_steps),
        ):
            require(value is None or 0 < value < 1e12, name, value, "more than 0, or null")
        require(evaluate.batch_size >= 1, "evaluate.batch_size", evaluate.batch_size, "1 or more")
        require(
            compare.seeds >= 3,
            "compare.seeds",
            compare.seeds,
            "3 or more: fewer show no spread",
        )
        require(
            not compare.scratch or self.model.weights is not None,
            "model.weights",
            "null with compare.scratch true",
            "weights to compare with training from scratch",
        )
        require(
            not (compare.scratch and evaluate.only),
            "compare.scratch, evaluate.only",
            "true and true",
            "at most one of them",
        )
        require(
            compare.scratch_base_lr is None or 0 <= compare.scratch_base_lr < math.inf,
            "compare.scratch_base_lr",
            compare.scratch_base_lr,
            "a finite number of 0 or more, or null",
        )
        require(
            0 < compare.scratch_layer_decay <= 1,
            "compare.scratch_layer_decay",
            compare.scratch_layer_decay,
            "more than 0 to 1",
        )
