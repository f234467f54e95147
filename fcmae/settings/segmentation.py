"""The settings of a fine-tuning whose task is segmentation: a class for every pixel."""

from dataclasses import dataclass, field
from typing import Literal

from fcmae.settings.auto import AUTO, OrAuto
from fcmae.settings.finetune import (
    CompareConfig,
    EmaConfig,
    FinetuneEvaluateConfig,
    FinetuneOptimConfig,
    FinetuneTrainConfig,
    StartedImagesConfig,
    StartedModelConfig,
)
from fcmae.settings.ranges import (
    FiniteFloat,
    InnerShare,
    NonNegativeInt,
    PositiveInt,
    Share,
    ShareBelowOne,
    require,
)
from fcmae.settings.sections import (
    MAY_CHANGE,
    MAY_MOVE,
    SIZE_BEFORE,
    ImageSize,
    TaskConfig,
    check_turns,
    image_height_width,
)

SIDE_PX = 32  # crops and tiles are multiples of it, as the encoder's strides are
STEM_STRIDE = 4
STEM_ADVICE = (
    f"{STEM_STRIDE}, since decoders begin at a quarter of the picture: pretrain with "
    f"model.stem_stride {STEM_STRIDE}, and enlarge small pictures and their masks instead"
)


@dataclass(frozen=True, kw_only=True)
class SegmentationTaskConfig:
    """What is learned, by which decoder, with which loss."""

    kind: Literal["segmentation"] = "segmentation"
    """segmentation: a class for every pixel; classification has settings of its own."""
    architecture: Literal["upernet", "unet", "deeplabv3plus", "fpn"] = "upernet"
    """Decoder of segmentation_models_pytorch over the encoder."""
    decoder_channels: PositiveInt = 256
    """Width of the decoder (512 in the paper's UPerNet); of a unet, of its first block."""
    norm: Literal["group", "batch"] = "group"
    """Norm of the decoder: group, the same for any batch and number of processes; batch: smp's."""
    dice_weight: FiniteFloat = 1.0
    """Weight of the Dice loss beside the cross entropy; 0 leaves it out."""


@dataclass(frozen=True, kw_only=True)
class SegmentationDataConfig(StartedImagesConfig):
    """Which images and masks, and how they are read."""

    image_size: OrAuto[ImageSize] = field(default=AUTO, metadata=SIZE_BEFORE)
    """Pixels of the crops, one number or [height, width]; auto: as model.weights were trained,
    else 224."""
    path: str | list[str] = field(metadata=MAY_CHANGE)
    """Folder of images, a .txt of paths, or several; masks may lie beside them."""
    label: str | None = None
    """Null: labels of images have no meaning here."""
    masks: str | None = field(default=None, metadata=MAY_MOVE)
    """Folder of masks named as the images are; null: they lie beside them, see mask_suffix."""
    mask_suffix: str = ""
    """What a mask's name adds to its image's stem, such as _mask or _mask.png."""
    classes: dict[str, int | list[int]] | list[str] | None = None
    """{name: value or [red, green, blue] in the masks}, or names of the values 0, 1, 2 ..; null:
    every value that the masks hold is a class."""
    ignore_index: int | list[int] | None = None
    """Value or [red, green, blue] of pixels that are neither learned nor scored; null: none."""
    val_path: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of validation images; null holds images of `path` back."""
    val_masks: str | None = field(default=None, metadata=MAY_CHANGE)
    """Folder of their masks; null: as for `path`: beside the images."""
    val_share: InnerShare = 0.2
    """Share of the images held back for validation where neither val_path nor val/ exists."""
    split_seed: int = 0
    """Decides which images are held back; the same ones for every train.seed."""


@dataclass(frozen=True, kw_only=True)
class SegmentationModelConfig(StartedModelConfig):
    """The encoder and the weights it starts from."""

    stem_stride: int = STEM_STRIDE
    """Pixels per cell of the stem: 4, since decoders begin at a quarter of the picture."""
    native: bool = field(default=True, metadata={"before": False})
    """Blocks are computed by the native backend on a CPU, faster; false: by timm, to rounding."""


@dataclass(frozen=True, kw_only=True)
class SegmentationAugmentConfig:
    """Random changes of the training images and, where they move pixels, of their masks."""

    scale: tuple[FiniteFloat, FiniteFloat] = (0.5, 2.0)
    """Smallest and largest factor that pictures are scaled by before crops of data.image_size."""
    class_balanced: OrAuto[Share] = AUTO
    """Share of the crops drawn by class: each class as often, a picture that has it, around one
    of its pixels; auto: 0.5 where a class has less than 5 % of the pixels, else 0."""
    horizontal_flip: OrAuto[bool] = AUTO
    """Mirror half of the crops left to right; auto asks the pictures."""
    vertical_flip: OrAuto[bool] = AUTO
    """Mirror half of the crops top to bottom; auto: where it cannot be seen in the pictures."""
    rotate90: OrAuto[bool] = AUTO
    """Turn crops by a random multiple of 90 degrees, square crops only; auto as vertical_flip."""
    color_jitter: ShareBelowOne = 0.0
    """Range of brightness, contrast and saturation changes, of 1 or 3 channels."""


@dataclass(frozen=True, kw_only=True)
class SegmentationEvaluateConfig(FinetuneEvaluateConfig):
    """When the validation images are looked at, and in which tiles."""

    batch_size: PositiveInt = field(default=8, metadata=MAY_CHANGE)
    """Tiles per evaluation batch."""
    tile_size: ImageSize | None = None
    """Pixels of the tiles in which whole pictures are evaluated; null: data.image_size."""
    tile_overlap: ShareBelowOne = 0.25
    """Share of a tile that overlaps the next one, where both are blended."""
    num_pictures: NonNegativeInt = field(default=6, metadata=MAY_CHANGE)
    """Validation images to draw with truth, prediction and error."""


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(TaskConfig):
    """Settings of `fcmae finetune --task segmentation`: masks from an encoder's weights."""

    COMMON = (
        "run.dir",
        "data.path",
        "data.masks",
        "data.mask_suffix",
        "data.classes",
        "data.ignore_index",
        "data.val_path",
        "data.val_masks",
        "data.image_size",
        "data.in_chans",
        "task.architecture",
        "model.name",
        "model.weights",
        "optim.base_lr",
        "train.batch_size",
        "train.steps",
        "train.epochs",
        "compare.scratch",
    )

    data: SegmentationDataConfig
    train: FinetuneTrainConfig
    task: SegmentationTaskConfig = field(default_factory=SegmentationTaskConfig)
    model: SegmentationModelConfig = field(default_factory=SegmentationModelConfig)
    augment: SegmentationAugmentConfig = field(default_factory=SegmentationAugmentConfig)
    optim: FinetuneOptimConfig = field(default_factory=FinetuneOptimConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    evaluate: SegmentationEvaluateConfig = field(default_factory=SegmentationEvaluateConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value outside its range or a contradictory pair."""
        super().__post_init__()
        data, augment, evaluate = self.data, self.augment, self.evaluate
        for name, size in (
            ("data.image_size", data.image_size),
            ("evaluate.tile_size", evaluate.tile_size or data.image_size),
        ):
            sides = () if size == AUTO else image_height_width(size)
            require(
                all(side % SIDE_PX == 0 for side in sides),
                name,
                " x ".join(map(str, dict.fromkeys(sides))),
                f"multiples of {SIDE_PX} px, as the encoder's strides are",
            )
        require(
            self.model.stem_stride == STEM_STRIDE,
            "model.stem_stride",
            self.model.stem_stride,
            STEM_ADVICE,
        )
        low, high = augment.scale
        require(0 < low <= high, "augment.scale", list(augment.scale), "0 < low <= high")
        check_turns("augment.rotate90", augment.rotate90, data.image_size, "square crops")
        require(
            augment.color_jitter == 0 or data.in_chans in (1, 3),
            "augment.color_jitter",
            f"{augment.color_jitter} with {data.in_chans} channels",
            "0, since it is made for 1 or 3 channels",
        )
        _check_masks(data)
        self.compare.check_beside(self.model.weights, evaluates_only=evaluate.only)


def _check_masks(data: SegmentationDataConfig) -> None:
    """Raise ConfigError unless masks can be found and their values mean classes."""
    require(data.label is None, "data.label", data.label, "null, since masks are the labels")
    require(
        data.masks is not None or data.mask_suffix != "",
        "data.masks, data.mask_suffix",
        "neither",
        "the folder of the masks, or what the name of a mask beside its image adds (_mask)",
    )
    require(
        data.val_masks is None or data.val_path is not None,
        "data.val_masks",
        f"{data.val_masks} without data.val_path",
        "the folder of the validation images beside it",
    )
    classes = data.classes
    if classes is not None:
        names = list(classes)
        require(
            len(names) > 1,
            "data.classes",
            f"one class only, {names}",
            "two or more; what is not of the class is one, too, such as background: 0",
        )
        require(len(set(names)) == len(names), "data.classes", names, "different names")
    values = list(classes.values()) if isinstance(classes, dict) else []
    colours = [value for value in values if isinstance(value, list)]
    require(
        len(colours) in (0, len(values)),
        "data.classes",
        "numbers and colours",
        "one of them for all classes",
    )
    shown = [tuple(v) if isinstance(v, list) else v for v in (*values, data.ignore_index)]
    for value in (v for v in shown if isinstance(v, tuple)):
        require(
            len(value) == 3 and all(0 <= part <= 255 for part in value),
            "data.classes, data.ignore_index",
            list(value),
            "[red, green, blue], each 0 to 255",
        )
    known = [value for value in shown if value is not None]
    require(
        len(set(known)) == len(known),
        "data.classes, data.ignore_index",
        known,
        "a value of its own for each",
    )
    if data.ignore_index is not None and values:
        require(
            isinstance(data.ignore_index, list) == bool(colours),
            "data.ignore_index",
            data.ignore_index,
            "a colour where data.classes has colours, else a number",
        )
