"""The authors' own pretraining step, run from a clone of their repository on MinkowskiEngine.

Their code is read from where the user put it and never becomes part of this project: its licence
is another one. Their sparse depthwise layer exists on GPUs only; MinkowskiEngine's channelwise
convolution, of the same parameters, stands for it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fcmae.errors import ConfigError
from sparse.backends.minkowski import load_minkowski_engine

NAME = "authors"
PREFIX = "convnextv2_"
_MODULE = "models.fcmae"  # in their repository


def check_clone(folder: str, models: list[str]) -> None:
    """Raise ConfigError unless `folder` is a clone of the repository, or where a model is no V2."""
    if not (Path(folder) / "models" / "fcmae.py").is_file():
        raise ConfigError(
            f"--against authors: {folder!r} has no models/fcmae.py; name a clone of "
            "facebookresearch/ConvNeXt-V2."
        )
    for name in models:
        if not name.startswith(PREFIX):
            raise ConfigError(
                f"--models: the authors' code has no {name!r}, expected names such as "
                "convnextv2_tiny beside --against authors."
            )


def authors_model(
    folder: str, name: str, image_size: int, ratio: float
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return their untrained model of a timm name, and its loss of images.

    Raises:
        ConfigError: there is no such clone, or no such model in it.
        BackendUnavailableError: MinkowskiEngine cannot be imported.
    """
    check_clone(folder, [name])
    engine: Any = load_minkowski_engine()
    if not hasattr(engine, "MinkowskiDepthwiseConvolution"):
        engine.MinkowskiDepthwiseConvolution = engine.MinkowskiChannelwiseConvolution
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that they import timm under its name of then
            create = getattr(importlib.import_module(_MODULE), name, None)
    except Exception as error:
        raise ConfigError(
            f"--against authors: {folder!r} cannot be imported ({type(error).__name__}: {error})."
        ) from error
    finally:
        sys.path.pop(0)
    if create is None:
        raise ConfigError(f"--models: the authors' code has no {name!r}; choose another size.")
    model: nn.Module = create(img_size=image_size, mask_ratio=ratio, norm_pix_loss=True)
    return model, lambda images: model(images, mask_ratio=ratio)[0]
