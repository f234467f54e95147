"""Writes a model as a folder that transformers loads: ConvNextV2, or ConvNext for V1."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from fcmae.errors import BackendUnavailableError, CheckpointError
from fcmae.runs.durable import write_files
from fcmae.weights.conversion import Weights, write_weights
from fcmae.weights.structure import Structure


def build_model(structure: Structure, classes: Sequence[str] | None = None) -> Any:
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
) -> str:
    """Write config.json and model.safetensors into a folder, and return what `prove` says.

    Args:
        weights: to write.
        folder: created; other files in it are left alone.
        metadata: texts to keep with the weights.
        classes: names of the classifier's outputs.
        prove: called with the weights that transformers loads, before the files take their place.

    Raises:
        BackendUnavailableError: transformers is not installed.
        CheckpointError: transformers has no such ConvNeXt, or `prove` refuses.
        OSError: the folder cannot be written.
    """
    model = build_model(weights.structure, classes)
    state = write_weights(weights, "huggingface")

    def write(partial: Path) -> str:
        model.config.save_pretrained(partial)
        save_file(state, partial / "model.safetensors", metadata={**metadata, "format": "pt"})
        loaded: dict[str, Tensor] = load_folder(partial).state_dict()
        if loaded.keys() != state.keys():
            raise CheckpointError(
                "huggingface: transformers loads other entries than were written: "
                f"{', '.join(sorted(loaded.keys() ^ state.keys()))}; nothing was written."
            )
        return prove(loaded)

    return write_files(folder, write)


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
