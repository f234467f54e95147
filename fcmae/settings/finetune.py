"""The settings of a fine-tuning run: the sections that it has beside those of every training."""

import re
from dataclasses import dataclass, field
from typing import Literal

from fcmae.settings.auto import AUTO, OrAuto
from fcmae.settings.ranges import (
    Duration,
    EnoughToSpread,
    FiniteFloat,
    InnerShare,
    NonNegativeInt,
    PositiveInt,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    require,
)
from fcmae.settings.sections import (
    MAY_CHANGE,
    SIZE_BEFORE,
    CropConfig,
    ImagesConfig,
    ImageSize,
    Inflate,
    OptimConfig,
    TaskConfig,
    TrainConfig,
    check_crops,
)


@dataclass(frozen=True, kw_only=True)
class StartedImagesConfig(ImagesConfig):
    """Images for a model that starts from weights, which say how theirs were read."""

    image_size: OrAuto[ImageSize] = field(default=AUTO, metadata=SIZE_BEFORE)
    """Pixels, one number or [height, width]; auto: as model.weights were trained, else by the
    pictures."""
    mean: list[float] | None = None
    """Mean per channel of values in 0..1; null: as model.weights say, else ImageNet's (or grey)."""
    value_range: tuple[float, float] | None = None
    """Black and white of the files' own values; null: as model.weights say, else by file type."""
    bands: list[NonNegativeInt] | None = None
    """Bands of a file, from 0, that are the channels; null: as model.weights say, else by rule."""
    background: tuple[Share, Share, Share] | None = None
    """Red, green, blue below transparent pixels; null: as model.weights say, else holes."""
    reader: str | None = field(default=None, metadata=MAY_CHANGE)
    """Your own reader of files, MODULE:FUNCTION; null: as model.weights say, else none."""


@dataclass(frozen=True, kw_only=True)
class FinetuneDataConfig(StartedImagesConfig):
    """Which labelled images, and how they are read."""

    path: str | list[str] = field(metadata=MAY_CHANGE)
    """Folder with one folder per class (or with train/ and val/ of such), a CSV, or `elpv`."""
    label: str | None = None
    """Which labels of `elpv` to learn: `type` (null means it) or `defect`."""
    val_path: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of validation images with the same classes; null holds images of `path` back."""
    val_share: InnerShare = 0.2
    """Share of each class held back for validation where neither val_path nor val/ exists."""
    split_seed: int = 0
    """Decides which images are held back; the same ones for every train.seed."""
    train_per_class: PositiveInt | None = None
    """Training images to use of each class, drawn by train.seed; null uses all."""
    crop_pct: ShareAboveZero = 0.875
    """Share of the resized image's side that evaluation keeps; from 384 px on all is kept."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """What is learned from the labels."""

    kind: Literal["classification"] = "classification"
    """classification of whole images; segmentation, of their pixels, has settings of its own:
    fcmae finetune --task segmentation --help."""


@dataclass(frozen=True, kw_only=True)
class StartedModelConfig:
    """A model and the weights it starts from."""

    name: str = AUTO
    """timm name: convnextv2_{atto..huge} or convnext_*; auto: as model.weights say."""
    weights: str | None = field(default=None, metadata=MAY_CHANGE)
    """A run, a weights file, or timm/NAME, hf-hub:OWNER/NAME; null starts from scratch."""
    inflate: Inflate | None = field(default=None, metadata=MAY_CHANGE)
    """Stem for other channels: none draws it, mean or tile make it of theirs; null refuses."""
    stem_stride: PositiveInt = 4
    """Pixels per cell of the stem, as in pretraining: 4, or 2 or 1 for small images."""
    drop_path: OrAuto[ShareBelowOne] = AUTO
    """Stochastic depth rate of the last block, rising linearly from 0."""


@dataclass(frozen=True, kw_only=True)
class FinetuneModelConfig(StartedModelConfig):
    """The classifier and the weights it starts from."""

    head_init_scale: FiniteFloat | None = None
    """The classifier starts with deviation 0.02 times this; null: 0.001 with weights, else 1."""
    head_start: OrAuto[Literal["probe", "random"]] = field(
        default=AUTO, metadata={"before": "random"}
    )
    """The classifier starts as a linear probe of model.weights' features, or is drawn (unless these
    weights bring one of the same classes); auto: probe, where there are few labels to fit."""
    native: bool = field(default=True, metadata={"before": False})
    """Blocks are computed by the native backend on a CPU, faster; false: by timm, to rounding."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(CropConfig):
    """Random changes of the training images."""

    crop_scale: OrAuto[tuple[float, float]] = AUTO
    """Smallest and largest share of the picture's area that a random crop covers."""
    rand_augment: str | None = AUTO
    """timm's RandAugment, AugMix or AutoAugment policy, on 8-bit grey or colour; null: none."""
    color_jitter: FiniteFloat = 0.0
    """Range of brightness, contrast and saturation changes, where rand_augment is null."""
    reprob: OrAuto[Share] = AUTO
    """Probability of erasing a random rectangle (noise)."""
    mixup: OrAuto[FiniteFloat] = AUTO
    """Alpha of mixup; 0 mixes no images."""
    cutmix: OrAuto[FiniteFloat] = AUTO
    """Alpha of cutmix; with mixup, each batch takes one of the two."""
    smoothing: OrAuto[ShareBelowOne] = AUTO
    """Share of the target spread over all classes."""


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """AdamW, its schedule and layer decay."""

    base_lr: OrAuto[FiniteFloat] = AUTO
    """Learning rate per 256 images; the rate is base_lr * effective batch size / 256."""
    min_lr: FiniteFloat = 1e-6
    """Learning rate, absolute, at the end of the schedule."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    """AdamW's averaging constants."""
    layer_decay: OrAuto[ShareAboveZero] = AUTO
    """Factor of the learning rate per layer, from the last to the first; 1 is the same for all."""
    layer_decay_assigner: Literal["single", "group"] = "single"
    """What a layer is: each block, or one of 13 groups (the paper's base and large)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneTrainConfig(TrainConfig):
    """How long, how large, on what."""

    batch_size: OrAuto[PositiveInt] = field(default=AUTO, metadata=MAY_CHANGE)
    """Images per micro-step and process; auto: 32, or what few labels allow."""


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """A moving average of the weights, which is evaluated and exported in their place."""

    decay: OrAuto[InnerShare | None] = AUTO
    """Share of the old average kept per step, 0.9999 in the paper; null keeps no average."""
    warmup: bool = False
    """Let the share rise from 0 towards decay, for runs too short to forget the first weights."""


@dataclass(frozen=True, kw_only=True)
class FinetuneEvaluateConfig:
    """When the validation images are looked at."""

    every_epochs: Duration | None = None
    """Epochs between evaluations; at most one of every_epochs and every_steps, none: at the end."""
    every_steps: PositiveInt | None = None
    """Steps between evaluations."""
    batch_size: PositiveInt = field(default=64, metadata=MAY_CHANGE)
    """Images per evaluation batch."""
    only: bool = field(default=False, metadata=MAY_CHANGE)
    """Train nothing: evaluate model.weights, or this run's best weights, on the validation set."""


MOST_STARTS = 10  # 45 pairs
_START = re.compile(r"\w(?:[\w .-]*\w)?", re.ASCII)  # names of folders, too


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Whether pretraining helped: the same fine-tuning from scratch beside it, over seeds."""

    scratch: bool = False
    """Fine-tune from model.weights and from scratch, in folders of run.dir, and compare."""
    seeds: EnoughToSpread = 3
    """Runs of each, with train.seed and the seeds that follow it."""
    scratch_base_lr: OrAuto[FiniteFloat | None] = field(default=AUTO, metadata={"before": None})
    """optim.base_lr of the runs from scratch; null takes the same, and so does auto, unless rules
    choose a rate for classifiers that start as probes."""
    scratch_layer_decay: ShareAboveZero = 1.0
    """optim.layer_decay of the runs from scratch: untrained first layers must learn, too."""
    starts: dict[str, str | None] | None = None
    """Any number of named starts instead: {scratch: null, own: runs/mine, public: timm/NAME}."""

    def __post_init__(self) -> None:
        """Raise ConfigError for starts that are no comparison."""
        if self.starts is None:
            return
        given = dict(self.starts)
        require(
            2 <= len(given) <= MOST_STARTS
            and len(set(given.values())) == len(given)
            and any(given.values()),
            "compare.starts",
            given,
            f"2 to {MOST_STARTS} names with a start each, all different, one of them of weights, "
            "such as {scratch: null, own: runs/mine}",
        )
        for name, source in given.items():
            require(
                isinstance(name, str) and _START.fullmatch(name) is not None and source != "",
                "compare.starts",
                f"{name!r}: {source!r}",
                "names of letters, digits, spaces, '.', '_' and '-', each with a run, a file or a "
                "name of weights, or null",
            )
        folders = {name.replace(" ", "-") for name in given}
        require(
            len(folders) == len(given),
            "compare.starts",
            list(given),
            "names that differ in more than a space and a '-', as the folders of their runs must",
        )

    def check_beside(self, weights: str | None, *, evaluates_only: bool) -> None:
        """Raise ConfigError unless the comparison is one beside other settings.

        Args:
            weights: model.weights.
            evaluates_only: evaluate.only.
        """
        require(
            not self.scratch or weights is not None,
            "model.weights",
            "null with compare.scratch true",
            "weights to compare with training from scratch",
        )
        require(
            not (self.scratch and evaluates_only),
            "compare.scratch, evaluate.only",
            "true and true",
            "at most one of them",
        )
        if self.starts is None:
            return
        require(
            not (self.scratch or evaluates_only),
            "compare.starts",
            "named starts with compare.scratch or evaluate.only true",
            "at most one of them",
        )
        require(
            weights is None or weights in self.starts.values(),
            "model.weights",
            f"{weights} beside compare.starts",
            "null, or one of the starts",
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(TaskConfig):
    """Settings of `fcmae finetune`, which trains a classifier from an encoder's weights."""

    COMMON = (
        "run.dir",
        "data.path",
        "data.val_path",
        "data.image_size",
        "data.in_chans",
        "model.name",
        "model.weights",
        "optim.base_lr",
        "train.batch_size",
        "train.steps",
        "train.epochs",
        "compare.scratch",
    )

    data: FinetuneDataConfig
    train: FinetuneTrainConfig
    task: ClassificationConfig = field(default_factory=ClassificationConfig)
    model: FinetuneModelConfig = field(default_factory=FinetuneModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: FinetuneEvaluateConfig = field(default_factory=FinetuneEvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range or a contradictory pair."""
        super().__post_init__()
        augment, evaluate, in_chans = self.augment, self.evaluate, self.data.in_chans
        check_crops("augment", augment, self.data.image_size)
        require(
            (augment.rand_augment in (None, AUTO) and augment.color_jitter == 0)
            or in_chans in (1, 3),
            "augment.rand_augment, augment.color_jitter",
            f"{augment.rand_augment} and {augment.color_jitter} with {in_chans} channels",
            "null and 0, since both are made for 1 or 3 channels",
        )
        require(
            augment.rand_augment in (None, AUTO) or augment.color_jitter == 0,
            "augment.rand_augment, augment.color_jitter",
            f"{augment.rand_augment} and {augment.color_jitter}",
            "at most one of them",
        )
        is_mixing = any(alpha != AUTO and alpha > 0 for alpha in (augment.mixup, augment.cutmix))
        require(
            not is_mixing or self.train.batch_size == AUTO or self.train.batch_size % 2 == 0,
            "train.batch_size",
            self.train.batch_size,
            "an even number, since mixup and cutmix pair the images of a batch",
        )
        require(
            self.model.head_start != "probe"
            or self.model.weights is not None
            or self.compare.starts is not None,
            "model.head_start",
            "probe with model.weights null",
            "weights whose features can be probed, or random",
        )
        self.compare.check_beside(self.model.weights, evaluates_only=evaluate.only)
