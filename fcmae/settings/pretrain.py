"""The settings of a pretraining run: the sections that it has beside those of every training."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fcmae.settings.auto import AUTO, OrAuto
from fcmae.settings.ranges import (
    NoneOrEnoughToSpread,
    NonNegativeInt,
    PositiveInt,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    at_least,
    between,
    require,
)
from fcmae.settings.sections import (
    MAY_CHANGE,
    MAY_MOVE,
    SIZE_BEFORE,
    CropConfig,
    ImagesConfig,
    ImageSize,
    Inflate,
    LogConfig,
    OptimConfig,
    TaskConfig,
    check_crops,
)


@dataclass(frozen=True, kw_only=True)
class DataConfig(CropConfig, ImagesConfig):
    """Which images, and how they are cropped."""

    label: str | None = None
    """Which labels of `elpv` to score against: `type` or `defect`; null for class folders."""
    image_size: OrAuto[ImageSize] = field(default=AUTO, metadata=SIZE_BEFORE)
    """Pixels, one number or [height, width], which whole patches must tile; auto: as large as the
    median picture, 224 at most."""
    crop_scale: OrAuto[tuple[float, float]] = AUTO
    """Smallest and largest share of the picture's area that a random crop covers."""
    fullest_crops: bool = field(default=True, metadata={"before": False})
    """Of an image with holes take the fullest of ten crops; false: one half as full will do."""
    cache: str | None = field(default=None, metadata=MAY_MOVE)
    """Folder to keep reduced pictures in, where decoding is what takes the time; null: none."""
    cache_side: PositiveInt | None = None
    """Pixels of a kept picture's shorter side; null: as the smallest crop needs."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder and decoder."""

    name: str = AUTO
    """timm name of the encoder: convnextv2_{atto..huge} or convnext_*; auto: by the images."""
    backend: Literal["native", "masked_dense", "minkowski"] = "native"
    """How the sparse encoder computes: native is the fast one, the others are for comparison."""
    grn_scope: Literal["image", "batch"] = "image"
    """Pool GRN over one image (the paper) or over the batch (the released PyTorch code)."""
    stem_stride: PositiveInt = 4
    """Pixels per cell of the stem: 4, or 2 or 1 for small images."""
    decoder_dim: Annotated[int, between(1, 16384)] = 512
    """Width of the decoder."""
    decoder_depth: Annotated[int, between(0, 100)] = 1
    """Number of ConvNeXt V2 blocks in the decoder."""
    drop_path: ShareBelowOne = 0.0
    """Stochastic depth rate of the encoder's last block."""
    init_from: str | None = field(default=None, metadata=MAY_CHANGE)
    """Start of the encoder: a run, a weights file, timm/NAME, hf-hub:OWNER/NAME; null: random."""
    init_decoder_from: str | None = field(default=None, metadata=MAY_CHANGE)
    """Start of the decoder: a pretraining run of the same shapes; null draws it."""
    inflate: Inflate | None = field(default=None, metadata=MAY_CHANGE)
    """Stem for other channels: none draws it, mean or tile make it of theirs; null refuses."""
    checkpoint_activations: bool = field(default=False, metadata=MAY_CHANGE)
    """Recompute the blocks of the encoder in the backward pass: less memory, more time."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What is hidden."""

    ratio: Share = 0.6
    """Share of patches to hide; the number of visible patches is rounded down."""
    patch_size: OrAuto[PositiveInt] = AUTO
    """Side of a patch in pixels, a multiple of the encoder's total stride; auto: by image_size."""
    min_valid: ShareAboveZero = 0.5
    """Share of a patch's pixels that must have data for the patch to be seen or scored."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What is predicted."""

    normalize_targets: bool = True
    """Predict pixels standardised per patch (the paper), or the plain normalised pixels."""


@dataclass(frozen=True, kw_only=True)
class PretrainOptimConfig(OptimConfig):
    """AdamW, its schedule, and the rates of a start's layers."""

    layer_decay: ShareAboveZero = 1.0
    """Factor of the encoder's rate per block, from the last to the first: keeps a start's early
    features; 1 is the same for all."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores of the frozen encoder, for data with labels; without labels nothing is scored."""

    every_steps: PositiveInt | None = None
    """Steps between kNN scores, beside the untrained encoder's; null scores at the end only."""
    max_images: Annotated[int, at_least(10)] = field(default=2000, metadata=MAY_CHANGE)
    """Largest number of images that are scored, drawn by the seed."""
    labels: Annotated[int, at_least(2)] = field(default=200, metadata=MAY_CHANGE)
    """Labelled images that a classifier may see in each draw; of more classes than that, some."""
    draws: NoneOrEnoughToSpread = field(default=5, metadata=MAY_CHANGE)
    """Random draws of labelled images; the spread is over them. 0 scores nothing at all."""


@dataclass(frozen=True, kw_only=True)
class HealthConfig:
    """Looks at images held out of the training, without labels; see health.png in the run."""

    checks: NonNegativeInt = 5
    """Looks in the course of the run, beside one at the start; 0 holds nothing out."""
    images: NonNegativeInt = 32
    """Images held out; at most a twentieth of all, and none when that is fewer than four."""


@dataclass(frozen=True, kw_only=True)
class PretrainLogConfig(LogConfig):
    """What is written while training."""

    pictures_every_steps: PositiveInt | None = field(default=None, metadata=MAY_CHANGE)
    """Steps between reconstruction pictures; null draws them at the start and the end only."""
    num_pictures: PositiveInt = field(default=6, metadata=MAY_CHANGE)
    """Fixed images in each reconstruction picture."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TaskConfig):
    """Settings of `fcmae pretrain`, which pretrains an encoder on images or continues a run."""

    COMMON = (
        "run.dir",
        "data.path",
        "data.image_size",
        "data.in_chans",
        "data.workers",
        "model.name",
        "model.init_from",
        "mask.ratio",
        "optim.base_lr",
        "train.batch_size",
        "train.steps",
        "train.epochs",
    )

    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: PretrainOptimConfig = field(default_factory=PretrainOptimConfig)
    log: PretrainLogConfig = field(default_factory=PretrainLogConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range or a contradictory pair."""
        super().__post_init__()
        check_crops("data", self.data, self.data.image_size)
        require(
            not (self.train.compile and self.model.backend == "minkowski"),
            "train.compile",
            f"{str(self.train.compile).lower()} with model.backend minkowski",
            "false: MinkowskiEngine cannot be compiled by torch",
        )
