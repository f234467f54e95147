"""FCMAE: self-supervised pretraining of ConvNets on people's own images.

Fully convolutional masked autoencoder of ConvNeXt V2 (arXiv 2301.00808).
"""

from typing import TYPE_CHECKING, Any

from fcmae.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    NonFiniteLossError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from fcmae.cli.ablate import ablate
    from fcmae.cli.compare import compare
    from fcmae.cli.curate import curate
    from fcmae.cli.functions import Run, finetune, load, pretrain
    from fcmae.cli.inspect import inspect
    from fcmae.cli.verify import verify
    from fcmae.convert import convert_state_dict
    from fcmae.data.decoding import read_image
    from fcmae.model.autoencoder import FCMAE, FCMAEOutput

__version__ = "0.2.0"

__all__ = [
    "FCMAE",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiskError",
    "FCMAEOutput",
    "NonFiniteLossError",
    "Run",
    "UnsupportedModelError",
    "ablate",
    "compare",
    "convert_state_dict",
    "curate",
    "finetune",
    "inspect",
    "load",
    "pretrain",
    "read_image",
    "verify",
]

_LAZY = {
    "FCMAE": "fcmae.model.autoencoder",
    "FCMAEOutput": "fcmae.model.autoencoder",
    "Run": "fcmae.cli.functions",
    "ablate": "fcmae.cli.ablate",
    "compare": "fcmae.cli.compare",
    "convert_state_dict": "fcmae.convert",
    "curate": "fcmae.cli.curate",
    "finetune": "fcmae.cli.functions",
    "inspect": "fcmae.cli.inspect",
    "load": "fcmae.cli.functions",
    "pretrain": "fcmae.cli.functions",
    "read_image": "fcmae.data.decoding",
    "verify": "fcmae.cli.verify",
}


def __getattr__(name: str) -> Any:
    """Import torch and timm on first use, so that `fcmae --help` answers at once."""
    if name not in _LAZY:
        raise AttributeError(f"module 'fcmae' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
