"""Builds the parts of a fine-tuning from its settings: pure construction, nothing is run."""

import dataclasses
import functools
from typing import Any, cast

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.convnext import ConvNeXt
from torch import nn

from fcmae.data import EvaluationTransform, Reading, sample_seed, seeded
from fcmae.data.augmentation import mean_and_std
from fcmae.data.splits import open_labelled
from fcmae.errors import ConfigError
from fcmae.finetuning.data import FinetuneAugmentation
from fcmae.model.backbones import create_backbone
from fcmae.model.structure import variant_for
from fcmae.settings.auto import AUTO
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.sections import image_height_width
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.training.optimization import lr_scale, parameter_groups
from fcmae.weights.loading import load_encoder
from fcmae.weights.public import is_public
from fcmae.weights.sources import licence_notices, metadata_of

AnyFinetuning = FinetuneConfig | SegmentationConfig

HEAD_STD = 0.02  # timm's, before head_init_scale
PRETRAINED_HEAD_SCALE = 0.001  # 2e-5, as the released code redraws the head


def check(config: FinetuneConfig) -> None:
    """Raise ConfigError, DataError or CheckpointError for settings that name what cannot be.

    Images are listed, the model is built without memory, and weights are asked what they are.
    """
    train, _ = open_labelled(config.data, config.train.seed)
    assert train.classes is not None
    with torch.device("meta"):
        create_backbone(
            variant_of(config, len(train)),
            in_chans=config.data.in_chans,
            stem_stride=config.model.stem_stride,
            num_classes=len(train.classes),
        )


def variant_of(config: AnyFinetuning, num_images: int) -> str:
    """Return the timm name of the model: as given, as the weights say, or for so many images.

    Raises:
        ConfigError: the weights do not say it.
    """
    metadata = weights_metadata(config)
    if config.model.name != AUTO:
        return config.model.name
    if config.model.weights is None:
        return variant_for(num_images)
    if "model_name" not in metadata:
        raise ConfigError(
            f"model.name: not given, and {config.model.weights} does not say which model it "
            "belongs to; add --model.name, such as --model.name convnextv2_atto."
        )
    return str(metadata["model_name"])


def create_classifier(
    config: FinetuneConfig, classes: tuple[str, ...]
) -> tuple[ConvNeXt, list[str]]:
    """Return the model with its starting weights, and sentences about what was not loaded.

    What is drawn depends on train.seed alone. A classifier in model.weights is taken when it is
    for the same classes.

    Raises:
        ConfigError: an unknown model.
        CheckpointError: weights that cannot be read or do not fit.
    """
    model_config = config.model
    with seeded(sample_seed(config.train.seed, "weights")):
        model = create_backbone(
            model_config.name,
            in_chans=config.data.in_chans,
            stem_stride=model_config.stem_stride,
            drop_path=model_config.drop_path,
            num_classes=len(classes),
        )
    scale = model_config.head_init_scale
    if scale is None:
        scale = 1.0 if model_config.weights is None else PRETRAINED_HEAD_SCALE
    _draw_head(model, scale, config.train.seed)
    if model_config.weights is None:
        return model, []
    told = licence_notices(model_config.weights)
    told += load_encoder(model, model_config.weights, inflate=model_config.inflate)
    known = weights_metadata(config).get("classes")
    if known is not None and tuple(known) != classes and len(known) == len(classes):
        _draw_head(model, scale, config.train.seed)
        told.append(f"{model_config.weights}: its classifier is for other classes and left out.")
    return model, told


def brings_classifier(config: FinetuneConfig, classes: tuple[str, ...]) -> bool:
    """Whether model.weights say that they have a classifier of these classes in this order."""
    known = weights_metadata(config).get("classes")
    return known is not None and tuple(known) == classes


def _draw_head(model: ConvNeXt, scale: float, seed: int) -> None:
    with seeded(sample_seed(seed, "head")), torch.no_grad():
        nn.init.trunc_normal_(model.head.fc.weight, std=HEAD_STD)
        model.head.fc.weight.mul_(scale)
        nn.init.zeros_(model.head.fc.bias)


def weights_metadata(config: AnyFinetuning) -> dict[str, Any]:
    """Return what model.weights says about itself; {} without weights or metadata.

    Statistics and bands of another number of channels are left out where their stem is, too.
    """
    if config.model.weights is None:
        return {}
    known = metadata_of(config.model.weights)
    may_differ = config.model.inflate is not None or is_public(config.model.weights)
    if may_differ and known.get("in_chans", config.data.in_chans) != config.data.in_chans:
        return {n: v for n, v in known.items() if n not in ("mean", "std", "bands")}
    return known


def starts_of(config: AnyFinetuning) -> list[str]:
    """Return the weights that a fine-tuning begins with: one, or none."""
    return [] if config.model.weights is None else [config.model.weights]


def size_of_weights(source: str) -> tuple[int, int] | None:
    """Return the (height, width), px, of the images that weights of one's own were trained on.

    None where they do not say it, and of public ones, which know other pictures.
    """
    size = None if is_public(source) else metadata_of(source).get("image_size")
    return None if size is None else (size[0], size[1])


def description(config: AnyFinetuning, step: int) -> dict[str, Any]:
    """Return the fields of EncoderInfo that any model of a fine-tuning has after `step` steps."""
    known = weights_metadata(config)
    mean, std = mean_and_std(config.data, known)
    return {
        "model_name": config.model.name,
        "stem_stride": config.model.stem_stride,
        "image_size": image_height_width(config.data.image_size),
        "mean": mean,
        "std": std,
        **dataclasses.asdict(create_reading(config)),
        "steps": step,
        "origin": known.get("origin", ""),
    }


def create_reading(config: AnyFinetuning) -> Reading:
    """Return how images are read: as the settings say, else as the weights were trained on."""
    return Reading.of_settings(config.data, weights_metadata(config))


def create_augmentation(config: FinetuneConfig) -> FinetuneAugmentation:
    """Return the random changes of training images."""
    mean, std = mean_and_std(config.data, weights_metadata(config))
    size = image_height_width(config.data.image_size)
    return FinetuneAugmentation(config.augment, size, mean=mean, std=std)


def create_evaluation_transform(config: FinetuneConfig) -> EvaluationTransform:
    """Return the fixed preparation of validation images."""
    mean, std = mean_and_std(config.data, weights_metadata(config))
    size = image_height_width(config.data.image_size)
    return EvaluationTransform(size, mean=mean, std=std, crop_pct=config.data.crop_pct)


def create_mixup(config: FinetuneConfig, num_classes: int) -> Mixup | None:
    """Return timm's mixing of a batch, which also smooths labels; None when nothing is mixed."""
    augment = config.augment
    if augment.mixup == 0 and augment.cutmix == 0:
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        label_smoothing=augment.smoothing,
        num_classes=num_classes,
    )


def create_loss(config: FinetuneConfig) -> nn.Module:
    """Return the training loss: of soft targets when images are mixed, else of labels."""
    if config.augment.mixup > 0 or config.augment.cutmix > 0:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(config.augment.smoothing)


def layer_groups(config: FinetuneConfig, model: ConvNeXt) -> list[dict[str, Any]]:
    """Return the optimizer's groups, one per layer and decay."""
    optim, stages = config.optim, cast(Any, model.stages)
    scale = functools.partial(
        lr_scale,
        depths=tuple(len(stage.blocks) for stage in stages),
        decay=optim.layer_decay,
        assigner=optim.layer_decay_assigner,
    )
    return parameter_groups(model.named_parameters(), optim.weight_decay, scale)
