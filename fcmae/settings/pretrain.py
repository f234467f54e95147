"""The settings of a pretraining run: one dataclass per section, defaults stand here only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fcmae.errors import ConfigError

# Marks a setting in which a continued run may differ from what its folder records.
MAY_CHANGE = {"may_change": True}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives."""

    dir: str = field(metadata=MAY_CHANGE)
    """Folder of the run; starting the same command again continues the run in it."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are cropped."""

    path: str | list[str] = field(metadata=MAY_CHANGE)
    """Folder, list of folders, text file of paths, or `elpv` for the quickstart's pictures."""
    label: str | None = None
    """Which labels of `elpv` to score against: `type` or `defect`; null for class folders."""
    image_size: int | tuple[int, int] = 224
    """Pixels, one number or [height, width]; whole patches must tile it."""
    in_chans: int = 3
    """Image channels the model takes; grey, colour and alpha files are converted to it."""
    mean: list[float] | None = None
    """Mean per channel of values in 0..1; null takes ImageNet's, or its grey counterpart."""
    std: list[float] | None = None
    """Standard deviation per channel, as `mean`."""
    value_range: tuple[float, float] | None = None
    """Black and white of the files' own values, e.g. [0, 4095] for 12 bit; null: by file type."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the picture's area that a random crop covers."""
    horizontal_flip: bool = True
    """Mirror half of the crops left to right."""
    vertical_flip: bool = False
    """Mirror half of the crops top to bottom; for pictures without an upright direction."""
    rotate90: bool = False
    """Turn crops by a random multiple of 90 degrees; square images only."""
    workers: int = field(default=2, metadata=MAY_CHANGE)
    """Processes per training process that read images; 0 reads in the training process."""
    cache: str | None = None
    """Folder to keep reduced pictures in, where decoding is what takes the time; null: none."""
    cache_side: int | None = None
    """Pixels of a kept picture's shorter side; null: as the smallest crop needs."""
    timeout_seconds: float = field(default=600.0, metadata=MAY_CHANGE)
    """Longest wait for one batch before the run stops and says that a reader is stuck."""
    max_skipped_share: float = field(default=0.05, metadata=MAY_CHANGE)
    """Stop when more than this share of the files turned out to be undecodable."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder."""

    name: str = "convnextv2_tiny"
    """timm name of the encoder: convnextv2_{atto..huge} or convnext_*."""
    backend: Literal["native", "masked_dense", "minkowski"] = "native"
    """How the sparse encoder computes: native is the fast one, the others are for comparison."""
    grn_scope: Literal["image", "batch"] = "image"
    """Pool GRN over one image (the paper) or over the batch (the released PyTorch code)."""
    stem_stride: int = 4
    """Pixels per cell of the stem: 4, or 2 or 1 for small images."""
    decoder_dim: int = 512
    """Width of the decoder."""
    decoder_depth: int = 1
    """Number of ConvNeXt V2 blocks in the decoder."""
    drop_path: float = 0.0
    """Stochastic depth rate of the encoder's last block."""
    init_from: str | None = field(default=None, metadata=MAY_CHANGE)
    """Weights to start the encoder from: a run folder or a weights file; null draws them."""
    checkpoint_activations: bool = field(default=False, metadata=MAY_CHANGE)
    """Recompute the blocks of the encoder in the backward pass: less memory, more time."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What is hidden."""

    ratio: float = 0.6
    """Share of patches to hide; the number of visible patches is rounded down."""
    patch_size: int = 32
    """Side of a patch in pixels, a multiple of the encoder's total stride."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is predicted."""

    normalize_targets: bool = True
    """Predict pixels standardised per patch (the paper), or the plain normalised pixels."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    base_lr: float = 1.5e-4
    """Learning rate per 256 images; the rate is base_lr * effective batch size / 256."""
    min_lr: float = 0.0
    """Learning rate, absolute, at the end of the cosine."""
    weight_decay: float = 0.05
    """Decay of weight matrices; norms, biases, GRN weights and the mask token have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging constants."""
    warmup_epochs: float | None = None
    """Linear warm-up in epochs; at most one of warmup_epochs and warmup_steps, none means 0."""
    warmup_steps: int | None = None
    """Linear warm-up in steps."""
    clip_grad: float | None = None
    """Largest L2 norm of the gradient; null does not clip (the paper)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, on what."""

    batch_size: int = field(default=64, metadata=MAY_CHANGE)
    """Images per micro-step and process."""
    accumulate: int = field(default=1, metadata=MAY_CHANGE)
    """Micro-steps per optimizer step; effective batch = batch_size * accumulate * processes."""
    steps: int | None = None
    """Optimizer steps; exactly one of steps and epochs."""
    epochs: float | None = None
    """Passes over the images; exactly one of steps and epochs."""
    seed: int = 0
    """Decides initial weights, order, crops, flips and masks."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """fp32, bf16 autocast, or fp16 autocast with loss scaling (CUDA only)."""
    device: str = field(default="auto", metadata=MAY_CHANGE)
    """auto, cpu, cuda or cuda:N."""
    compile: bool = field(default=False, metadata=MAY_CHANGE)
    """Run the model through torch.compile; pays on GPUs only."""
    skip_nonfinite_steps: int = field(default=0, metadata=MAY_CHANGE)
    """Steps with a NaN or infinite loss to leave out, in all, before the run stops."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training."""

    every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    pictures_every_steps: int | None = field(default=None, metadata=MAY_CHANGE)
    """Steps between reconstruction pictures; null draws them at the start and the end only."""
    num_pictures: int = field(default=6, metadata=MAY_CHANGE)
    """Fixed images in each reconstruction picture."""
    tensorboard: bool = field(default=True, metadata=MAY_CHANGE)
    """Write TensorBoard events beside metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores of the frozen encoder, for data with labels; without labels nothing is scored."""

    every_steps: int | None = None
    """Steps between kNN scores, beside the untrained encoder's; null scores at the end only."""
    max_images: int = field(default=2000, metadata=MAY_CHANGE)
    """Largest number of images that are scored, drawn by the seed."""
    labels: int = field(default=200, metadata=MAY_CHANGE)
    """Labelled images that a classifier may see in each draw at the end; the rest is held out."""
    draws: int = field(default=5, metadata=MAY_CHANGE)
    """Random draws of labelled images at the end; the spread is over them. 0 scores nothing."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Looks at images held out of the training, without labels; see health.png in the run."""

    checks: int = 5
    """Looks in the course of the run, beside one at the start; 0 holds nothing out."""
    images: int = 32
    """Images held out; at most a twentieth of all, and none when that is fewer than four."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved."""

    every_steps: int | None = field(default=500, metadata=MAY_CHANGE)
    """Steps between checkpoints; null saves by time and at the end only."""
    every_minutes: float | None = field(default=None, metadata=MAY_CHANGE)
    """Minutes between checkpoints, whatever the step."""
    keep_last: int = field(default=2, metadata=MAY_CHANGE)
    """Newest checkpoints to keep."""
    keep_every: int | None = field(default=None, metadata=MAY_CHANGE)
    """Keep for good the checkpoints whose step is a multiple of this."""
    max_failures: int = field(default=3, metadata=MAY_CHANGE)
    """Failed attempts to write a checkpoint, one after another, before the run stops."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of `fcmae pretrain`."""

    run: RunConfig
    data: DataConfig
    train: TrainConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range or a contradictory pair."""
        check_train(self.train)
        check_optim(self.optim)
        check_checkpoint(self.checkpoint)
        data, mask, model, log = self.data, self.mask, self.model, self.log
        check_reading(data)
        require(
            data.cache_side is None or data.cache_side >= 1,
            "data.cache_side",
            data.cache_side,
            "1 px or more, or null",
        )
        low, high = data.crop_scale
        require(
            0 < low <= high <= 1, "data.crop_scale", list(data.crop_scale), "0 < low <= high <= 1"
        )
        height, width = image_height_width(data.image_size)
        require(
            not data.rotate90 or height == width,
            "data.rotate90",
            f"true with {height} x {width} px",
            "square images",
        )
        require(mask.patch_size >= 1, "mask.patch_size", mask.patch_size, "1 px or more")
        require(0 <= mask.ratio <= 1, "mask.ratio", mask.ratio, "a share between 0 and 1")
        require(
            not (self.train.compile and model.backend == "minkowski"),
            "train.compile",
            "true with model.backend minkowski",
            "false: MinkowskiEngine cannot be compiled by torch",
        )
        require(0 <= model.drop_path < 1, "model.drop_path", model.drop_path, "0 to below 1")
        require(
            1 <= model.decoder_dim <= 16384, "model.decoder_dim", model.decoder_dim, "1 to 16384"
        )
        require(
            0 <= model.decoder_depth <= 100, "model.decoder_depth", model.decoder_depth, "0 to 100"
        )
        require(log.every_steps >= 1, "log.every_steps", log.every_steps, "1 or more")
        require(log.num_pictures >= 1, "log.num_pictures", log.num_pictures, "1 or more")
        evaluate = self.evaluate
        require(evaluate.max_images >= 10, "evaluate.max_images", evaluate.max_images, "10 or more")
        require(evaluate.labels >= 2, "evaluate.labels", evaluate.labels, "2 or more")
        require(
            evaluate.draws == 0 or evaluate.draws >= 3,
            "evaluate.draws",
            evaluate.draws,
            "0, or 3 or more: fewer show no spread",
        )
        require(self.health.checks >= 0, "health.checks", self.health.checks, "0 or more")
        require(self.health.images >= 0, "health.images", self.health.images, "0 or more")
        for name, value in (
            ("log.pictures_every_steps", log.pictures_every_steps),
            ("evaluate.every_steps", evaluate.every_steps),
        ):
            require(value is None or value >= 1, name, value, "1 or more, or null")


def require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise ConfigError naming the setting, its value and what is expected."""
    if not condition:
        raise ConfigError(f"{name}: got {value}, expected {expected}.")


def image_height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def check_data_sizes(
    image_size: int | tuple[int, int],
    in_chans: int,
    mean: list[float] | None,
    std: list[float] | None,
) -> None:
    """Raise ConfigError unless sizes and channel statistics are possible."""
    height, width = image_height_width(image_size)
    require(
        min(height, width) >= 1 and max(height, width) <= 16384,
        "data.image_size",
        [height, width],
        "1 to 16384 px per side",
    )
    require(1 <= in_chans <= 4096, "data.in_chans", in_chans, "1 to 4096")
    require(
        (mean is None) == (std is None), "data.mean, data.std", "one of them", "both or neither"
    )
    for name, values in (("data.mean", mean), ("data.std", std)):
        require(
            values is None or (len(values) == in_chans and all(map(math.isfinite, values))),
            name,
            values,
            f"{in_chans} finite numbers, one per channel",
        )
    require(std is None or min(std) > 0, "data.std", std, "numbers above 0")


def check_reading(data: Any) -> None:
    """Raise ConfigError unless a `data` section can be read with; of pretraining or fine-tuning."""
    check_data_sizes(data.image_size, data.in_chans, data.mean, data.std)
    require(
        data.value_range is None or data.value_range[0] < data.value_range[1],
        "data.value_range",
        data.value_range,
        "[black, white] with black < white, or null",
    )
    require(data.workers >= 0, "data.workers", data.workers, "0 or more")
    require(data.timeout_seconds > 0, "data.timeout_seconds", data.timeout_seconds, "more than 0")
    require(
        0 <= data.max_skipped_share <= 1,
        "data.max_skipped_share",
        data.max_skipped_share,
        "0 to 1",
    )


def check_train(train: TrainConfig) -> None:
    """Raise ConfigError unless size, length and device are possible."""
    require(train.batch_size >= 1, "train.batch_size", train.batch_size, "1 or more")
    require(train.accumulate >= 1, "train.accumulate", train.accumulate, "1 or more")
    require(
        (train.steps is None) != (train.epochs is None),
        "train.steps, train.epochs",
        f"{train.steps} and {train.epochs}",
        "exactly one of them",
    )
    require(train.steps is None or train.steps >= 1, "train.steps", train.steps, "1 or more")
    require(
        train.epochs is None or 0 < train.epochs < 1e9, "train.epochs", train.epochs, "more than 0"
    )
    require(-(2**63) <= train.seed < 2**63, "train.seed", train.seed, "a 64-bit whole number")
    require(
        train.skip_nonfinite_steps >= 0,
        "train.skip_nonfinite_steps",
        train.skip_nonfinite_steps,
        "0 or more",
    )


def check_optim(optim: OptimConfig) -> None:
    """Raise ConfigError unless rates, decay and warm-up are possible."""
    for name, value in (
        ("optim.base_lr", optim.base_lr),
        ("optim.min_lr", optim.min_lr),
        ("optim.weight_decay", optim.weight_decay),
    ):
        require(0 <= value < math.inf, name, value, "a finite number of 0 or more")
    require(
        all(0 <= beta < 1 for beta in optim.betas), "optim.betas", list(optim.betas), "0 to below 1"
    )
    require(
        optim.warmup_epochs is None or optim.warmup_steps is None,
        "optim.warmup_epochs, optim.warmup_steps",
        f"{optim.warmup_epochs} and {optim.warmup_steps}",
        "at most one of them",
    )
    for name, warmup in (
        ("optim.warmup_epochs", optim.warmup_epochs),
        ("optim.warmup_steps", optim.warmup_steps),
    ):
        require(warmup is None or 0 <= warmup < 1e12, name, warmup, "0 or more")
    require(
        optim.clip_grad is None or optim.clip_grad > 0,
        "optim.clip_grad",
        optim.clip_grad,
        "more than 0, or null",
    )


def check_checkpoint(checkpoint: CheckpointConfig) -> None:
    """Raise ConfigError unless cadence and numbers are possible."""
    for name, value in (
        ("checkpoint.every_steps", checkpoint.every_steps),
        ("checkpoint.every_minutes", checkpoint.every_minutes),
        ("checkpoint.keep_every", checkpoint.keep_every),
    ):
        require(value is None or value > 0, name, value, "more than 0, or null")
    require(checkpoint.keep_last >= 1, "checkpoint.keep_last", checkpoint.keep_last, "1 or more")
    require(
        checkpoint.max_failures >= 1,
        "checkpoint.max_failures",
        checkpoint.max_failures,
        "1 or more",
    )
