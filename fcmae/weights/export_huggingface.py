"""Writes a model as a folder that transformers loads: ConvNextV2, or ConvNext for V1."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fcmae.data.augmentation import WARP_FROM_PX
from fcmae.errors import BackendUnavailableError, CheckpointError
from fcmae.runs.durable import write_files
from fcmae.weights.conversion import Weights, write_weights
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.structure import Structure

BICUBIC = 3  # as Pillow, and so transformers, numbers its filters


def build_model(
    structure: Structure,
    classes: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Any:
    """Return an untrained transformers model, with a classifier if the structure has one.

    Raises:
        BackendUnavailableError: transformers is not installed.
        CheckpointError: transformers has no such ConvNeXt.
    """
    transformers = import_transformers()
    wrong = [
        reason
        for is_wrong, reason in (
            (set(structure.kernel_sizes) != {7}, f"kernels of {structure.kernel_sizes}, not 7"),
            (structure.starts_with_downsample, "a stem of stride 2"),
            (structure.final_norm == "norm_pre", "its last norm before pooling"),
            (not structure.has_conv_bias, "no biases in convolutions"),
            (structure.has_grn == structure.has_layer_scale, "neither V1's nor V2's blocks"),
        )
        if is_wrong
    ]
    if wrong:
        raise CheckpointError(
            f"huggingface: transformers has no ConvNeXt with {', '.join(wrong)}; "
            "choose another layout, such as timm or onnx."
        )
    version = "V2" if structure.has_grn else ""
    settings: dict[str, Any] = {
        "num_channels": structure.in_chans,
        "patch_size": structure.stem_size,
        "hidden_sizes": list(structure.dims),
        "depths": list(structure.depths),
        "layer_norm_eps": 1e-6,  # of the last norm, as in timm; transformers' default is 1e-12
        "architectures": [_class_name(structure)],
    }
    if image_size is not None:
        height, width = image_size
        settings["image_size"] = height if height == width else [height, width]
    if structure.num_classes is not None:
        names = list(classes or map(str, range(structure.num_classes)))
        settings["id2label"] = dict(enumerate(names))
        settings["label2id"] = {name: index for index, name in enumerate(names)}
    config = getattr(transformers, f"ConvNext{version}Config")(**settings)
    with torch.random.fork_rng(devices=[]):
        return getattr(transformers, _class_name(structure))(config)


def write_huggingface(
    weights: Weights,
    folder: Path,
    metadata: Mapping[str, str],
    classes: Sequence[str] | None,
    prove: Callable[[dict[str, Tensor]], str],
    info: EncoderInfo | None = None,
) -> str:
    """Write a folder that transformers loads, and return what `prove` says.

    It holds config.json, model.safetensors and, with `info`, preprocessor_config.json.

    Args:
        weights: to write.
        folder: created; other files in it are left alone.
        metadata: texts to keep with the weights.
        classes: names of the classifier's outputs.
        prove: called with the weights that transformers loads, before the files take their place.
        info: how images become the model's input; None where nobody says.

    Raises:
        BackendUnavailableError: transformers is not installed.
        CheckpointError: transformers has no such ConvNeXt, or `prove` refuses.
        OSError: the folder cannot be written.
    """
    model = build_model(weights.structure, classes, None if info is None else info.image_size)
    state = write_weights(weights, "huggingface")

    def write(partial: Path) -> str:
        model.config.save_pretrained(partial)
        save_file(state, partial / "model.safetensors", metadata={**metadata, "format": "pt"})
        if info is not None:
            text = json.dumps(preprocessor_config(info), indent=2) + "\n"
            (partial / "preprocessor_config.json").write_text(text, encoding="utf-8")
        loaded: dict[str, Tensor] = load_folder(partial).state_dict()
        if loaded.keys() != state.keys():
            raise CheckpointError(
                "huggingface: transformers loads other entries than were written: "
                f"{', '.join(sorted(loaded.keys() ^ state.keys()))}; nothing was written."
            )
        return prove(loaded)

    return write_files(folder, write)


def preprocessor_config(info: EncoderInfo) -> dict[str, Any]:
    """Return what makes AutoImageProcessor prepare images as the run's own evaluation does.

    Where an odd number of pixels is cut off, transformers rounds to the other side.

    Of images that are not square and smaller than 384 px transformers scales the short side, so
    that pictures of another aspect than the run's are cut or padded more than here.
    """
    height, width = info.image_size
    config: dict[str, Any] = {
        "do_resize": True,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(info.mean),
        "image_std": list(info.std),
    }
    if height == width:  # its own from 384 px on squeezes, as ours
        kind = "ConvNextImageProcessor"
        config |= {"size": {"shortest_edge": height}, "crop_pct": info.crop_pct}
    elif min(height, width) >= WARP_FROM_PX:
        kind = "ViTImageProcessor"
        config |= {"size": {"height": height, "width": width}}
    else:
        kind = "BitImageProcessor"
        config |= {
            "size": {"shortest_edge": int(min(height, width) / info.crop_pct)},
            "do_center_crop": True,
            "crop_size": {"height": height, "width": width},
            "do_convert_rgb": info.in_chans == 3,
        }
    return {"image_processor_type": kind, **config}


def load_folder(folder: Path) -> Any:
    """Return what AutoModel, or AutoModelForImageClassification, loads from a folder, offline."""
    transformers = import_transformers()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    is_classifier = str(config.architectures[0]).endswith("ForImageClassification")
    loader = "AutoModelForImageClassification" if is_classifier else "AutoModel"
    return getattr(transformers, loader).from_pretrained(folder, local_files_only=True).eval()


def import_transformers() -> Any:
    """Return the module transformers.

    Raises:
        BackendUnavailableError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import transformers
    except ImportError as error:
        raise BackendUnavailableError(
            "huggingface: transformers is not installed; run pip install 'fcmae[huggingface]'."
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _class_name(structure: Structure) -> str:
    version = "V2" if structure.has_grn else ""
    kind = "Model" if structure.num_classes is None else "ForImageClassification"
    return f"ConvNext{version}{kind}"
