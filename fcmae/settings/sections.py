"""The sections that pretraining and fine-tuning share, and the check of what must agree in them."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fcmae.settings.auto import AUTO, OrAuto, seconds_of
from fcmae.settings.ranges import (
    Duration,
    DurationOrZero,
    FiniteFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    between,
    check_ranges,
    require,
)

# Marks a setting in which a continued run may differ from what its folder records.
MAY_CHANGE = {"may_change": True}
# Marks a setting that makes a run of schedule wsd longer or shorter: its first part stays.
LENGTH = {"length": True}
# Marks a place that a continued run may move, but not begin or cease to have.
MAY_MOVE = {"may_move": True}
# What data.image_size was before pictures were asked.
SIZE_BEFORE = {"before": 224}
# Ways to say one thing. Where a later source says another one, it replaces the earlier's.
EITHER_OR = (
    ("train.steps", "train.epochs", "train.time"),
    ("optim.warmup_steps", "optim.warmup_epochs"),
    ("evaluate.every_steps", "evaluate.every_epochs"),
)
PixelsPerSide = Annotated[int, between(1, 16384, " px per side")]
ImageSize = PixelsPerSide | tuple[PixelsPerSide, PixelsPerSide]
Channels = Annotated[int, between(1, 4096)]
# How torch.compile is used; true is its default.
Compiling = bool | Literal["default", "max-autotune-no-cudagraphs", "reduce-overhead"]
# Where numbers go beside metrics.jsonl; see fcmae.runs.trackers.
Tracker = Literal["tensorboard", "wandb", "mlflow"]
# What becomes of a stem for another number of channels; see fcmae.weights.loading.load_encoder.
Inflate = Literal["none", "mean", "tile"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives."""

    dir: str = field(metadata=MAY_CHANGE)
    """Folder of the run; starting the same command again continues the run in it."""


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Which images, and how they are read."""

    path: str | list[str] = field(metadata=MAY_CHANGE)
    """Folder, shards ('{000..099}.tar'), .txt of paths, .csv of labels, several, or `elpv`."""
    exclude: str | list[str] | None = field(default=None, metadata=MAY_CHANGE)
    """Images to leave out: patterns of paths ('*/docs/*') or text files that list them."""
    group: str | None = None
    """Regular expression whose first group names what is never parted, such as (patient[0-9]+)."""
    label: str | None = None
    """Which labels of `elpv`: `type` or `defect`; null for class folders."""
    image_size: OrAuto[ImageSize] = field(default=AUTO, metadata=SIZE_BEFORE)
    """Pixels, one number or [height, width]; auto: as the pictures need, 224 at most."""
    in_chans: Channels = 3
    """Image channels the model takes; grey, colour and alpha files are converted to it."""
    mean: list[float] | None = None
    """Mean per channel of values in 0..1; null takes ImageNet's, or its grey counterpart."""
    std: list[float] | None = None
    """Standard deviation per channel, as `mean`."""
    value_range: tuple[float, float] | None = None
    """Black and white of the files' own values, e.g. [0, 4095] for 12 bit; null: by file type."""
    bands: list[NonNegativeInt] | None = None
    """Bands of a file, counted from 0, that are the channels, in their order; null: by rule."""
    background: tuple[Share, Share, Share] | None = None
    """Red, green and blue, 0 to 1, below transparent pixels; null: an alpha of 0 is no data."""
    reader: str | None = field(default=None, metadata=MAY_CHANGE)
    """Your own reader of files, MODULE:FUNCTION or FILE.py:FUNCTION; null: none."""
    holes: bool = True
    """Leave out what files mark as no data (nodata, masks, NaN, alpha 0); false: use it as is."""
    invalid: float | list[float] | None = None
    """Value of the files' own that means no data, one for all bands or one per band, e.g. 0."""
    valid_mask: str | None = None
    """Mask beside each picture, 0 where it has no data, e.g. {stem}_mask.png or masks/{name}."""
    workers: NonNegativeInt = field(default=2, metadata=MAY_CHANGE)
    """Processes per training process that read images; 0 reads in the training process."""
    timeout_seconds: Duration = field(default=600.0, metadata=MAY_CHANGE)
    """Longest wait for one batch before the run stops and says that a reader is stuck."""
    max_skipped_share: Share = field(default=0.05, metadata=MAY_CHANGE)
    """Stop when more than this share of the files turned out to be undecodable."""


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Random crops of the training images."""

    crop_scale: OrAuto[tuple[float, float]]
    """Smallest and largest share of the picture's area that a random crop covers."""
    horizontal_flip: OrAuto[bool] = AUTO
    """Mirror half of the crops left to right; auto asks the pictures."""
    vertical_flip: OrAuto[bool] = AUTO
    """Mirror half of the crops top to bottom; auto: where it cannot be seen in the pictures."""
    rotate90: OrAuto[bool] = AUTO
    """Turn crops by a random multiple of 90 degrees, square images only; auto as vertical_flip."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule."""

    base_lr: OrAuto[FiniteFloat] = AUTO
    """Learning rate per 256 images; the rate is base_lr * effective batch size / 256."""
    schedule: OrAuto[Literal["cosine", "wsd"]] = field(default=AUTO, metadata={"before": "cosine"})
    """After the warm-up cosine falls to the end; wsd is constant and falls in the last decay_share,
    and its runs can be extended: a larger train.steps or train.epochs goes on before the decay."""
    decay_share: ShareAboveZero = field(default=0.2, metadata=LENGTH)
    """wsd: share of the run in which the rate falls as 1 - sqrt of the way through it."""
    min_lr: FiniteFloat = 0.0
    """Learning rate, absolute, at the end of the schedule."""
    weight_decay: OrAuto[FiniteFloat] = AUTO
    """Decay of weight matrices; norms, biases, GRN weights and the mask token have none."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.95)
    """AdamW's averaging constants."""
    warmup_epochs: DurationOrZero | None = None
    """Linear warm-up in epochs; at most one of warmup_epochs and warmup_steps, nulls mean 0."""
    warmup_steps: OrAuto[NonNegativeInt | None] = AUTO
    """Linear warm-up in steps; auto, where no epochs are given: a share of the run."""
    clip_grad: PositiveFloat | None = None
    """Largest L2 norm of the gradient; null does not clip (the paper)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, how large, on what."""

    batch_size: PositiveInt = field(default=64, metadata=MAY_CHANGE)
    """Images per micro-step and process."""
    accumulate: PositiveInt = field(default=1, metadata=MAY_CHANGE)
    """Micro-steps per optimizer step; effective batch = batch_size * accumulate * processes."""
    steps: PositiveInt | None = field(default=None, metadata=LENGTH)
    """Optimizer steps; at most one of steps, epochs and time."""
    epochs: Duration | None = field(default=None, metadata=LENGTH)
    """Passes over the images; at most one of steps, epochs and time."""
    time: str | None = None
    """How long to train, such as 20min or 1.5h: its steps are fixed once, from the first ones'
    measured rate. Without any length the command has a rule."""
    seed: Seed = 0
    """Decides initial weights, order, crops, flips and masks."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """fp32 (IEEE), bf16 autocast, or on CUDA only tf32 (fp32 multiplied with 10 bits, fast) and
    fp16 autocast with loss scaling."""
    device: str = field(default="auto", metadata=MAY_CHANGE)
    """auto, cpu, cuda or cuda:N."""
    compile: Compiling = field(default=False, metadata=MAY_CHANGE)
    """Run the model through torch.compile, which pays on GPUs only: true is its mode default,
    reduce-overhead takes CUDA graphs."""
    skip_nonfinite_steps: NonNegativeInt = field(default=0, metadata=MAY_CHANGE)
    """Steps with a NaN or infinite loss to leave out, in all, before the run stops."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training."""

    every_steps: PositiveInt = 10
    """Steps between lines of metrics.jsonl."""
    to: Tracker | list[Tracker] = field(default="tensorboard", metadata=MAY_CHANGE)
    """Where numbers go beside metrics.jsonl: tensorboard, wandb, mlflow, or several."""
    project: str = field(default="fcmae", metadata=MAY_CHANGE)
    """Project of Weights & Biases, experiment of MLflow."""
    tensorboard: bool = field(default=True, metadata=MAY_CHANGE)
    """false leaves TensorBoard out, whatever log.to says."""

    @property
    def trackers(self) -> list[str]:
        """Where the numbers go, each once."""
        named = [self.to] if isinstance(self.to, str) else self.to
        return [name for name in dict.fromkeys(named) if name != "tensorboard" or self.tensorboard]


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the run is saved."""

    every_steps: PositiveInt | None = field(default=500, metadata=MAY_CHANGE)
    """Steps between checkpoints; null saves by time and at the end only."""
    every_minutes: PositiveFloat | None = field(default=10.0, metadata=MAY_CHANGE)
    """Minutes between checkpoints, whatever the step; null saves by steps and at the end only."""
    keep_last: PositiveInt = field(default=2, metadata=MAY_CHANGE)
    """Newest checkpoints to keep."""
    keep_every: PositiveInt | None = field(default=None, metadata=MAY_CHANGE)
    """Keep for good the checkpoints whose step is a multiple of this."""
    max_failures: PositiveInt = field(default=3, metadata=MAY_CHANGE)
    """Failed attempts to write a checkpoint, one after another, before the run stops."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What every training has; a training of one kind adds sections of its own."""

    run: RunConfig
    data: ImagesConfig
    train: TrainConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range or a contradictory pair."""
        check_ranges(self)
        data = self.data
        for names in EITHER_OR:
            section, leaves = names[0].partition(".")[0], [name.partition(".")[2] for name in names]
            given = [getattr(getattr(self, section), leaf, None) for leaf in leaves]
            known = [value for value in given if value not in (None, AUTO)]
            words = " and ".join(map(str, known))
            require(len(known) <= 1, ", ".join(names), words, "at most one of them")
        if self.train.time is not None:
            seconds_of(self.train.time)
        require(
            (data.mean is None) == (data.std is None),
            "data.mean, data.std",
            "one of them",
            "both or neither",
        )
        for name, values in (("data.mean", data.mean), ("data.std", data.std)):
            require(
                values is None
                or (len(values) == data.in_chans and all(map(math.isfinite, values))),
                name,
                values,
                f"{data.in_chans} finite numbers, one per channel",
            )
        require(data.std is None or min(data.std) > 0, "data.std", data.std, "numbers above 0")
        require(
            data.value_range is None or data.value_range[0] < data.value_range[1],
            "data.value_range",
            data.value_range,
            "[black, white] with black < white, or null",
        )
        require(
            data.bands is None or len(data.bands) == data.in_chans,
            "data.bands",
            data.bands,
            f"{data.in_chans} numbers, one per channel (data.in_chans), or null",
        )
        require(
            data.reader is None or ":" in data.reader,
            "data.reader",
            data.reader,
            "MODULE:FUNCTION, such as my_readers:read, or null",
        )
        check_holes(data.invalid, data.valid_mask)


def check_holes(invalid: float | list[float] | None, valid_mask: str | None) -> None:
    """Raise ConfigError unless values and masks of pixels without data are possible."""
    values = invalid if isinstance(invalid, list) else [0.0 if invalid is None else invalid]
    require(
        len(values) > 0 and all(map(math.isfinite, values)),
        "data.invalid",
        invalid,
        "a finite number, a list of one per band, or null (NaN means no data by itself)",
    )
    rest = "{stem}" if valid_mask is None else valid_mask
    is_named = "{stem}" in rest or "{name}" in rest
    rest = rest.replace("{stem}", "").replace("{name}", "")
    require(
        is_named and not set("{}") & set(rest) and valid_mask not in ("{name}", "./{name}"),
        "data.valid_mask",
        repr(valid_mask),
        "a file that {stem} or {name} of the picture name, such as {stem}_mask.png, or null",
    )


def image_height_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels."""
    return (image_size, image_size) if isinstance(image_size, int) else image_size


def check_crops(section: str, crops: CropConfig, image_size: int | tuple[int, int]) -> None:
    """Raise ConfigError unless images of that size can be cropped as a section says."""
    if crops.crop_scale != AUTO:
        low, high = crops.crop_scale
        require(
            0 < low <= high <= 1,
            f"{section}.crop_scale",
            list(crops.crop_scale),
            "0 < low <= high <= 1, or auto",
        )
    check_turns(f"{section}.rotate90", crops.rotate90, image_size, "square images")


def check_turns(
    name: str, rotate90: bool, image_size: int | tuple[int, int], expected: str
) -> None:
    """Raise ConfigError unless images of that size, if it is known yet, can be turned."""
    if image_size == AUTO or rotate90 in (False, AUTO):
        return
    height, width = image_height_width(image_size)
    require(height == width, name, f"true with {height} x {width} px", expected)
