"""Sparse ConvNeXt encoders: a timm ConvNeXt computed at the visible patches of masked images.

Knows sites, features and convolutions; nothing of masks' origin, losses or training.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparse.architecture import Architecture, read_architecture
    from sparse.encoder import SparseConvNeXt

__all__ = [
    "Architecture",
    "BackendUnavailableError",
    "SparseConvNeXt",
    "UnsupportedModelError",
    "read_architecture",
]

# Imported on first use: torch and timm take seconds, and errors alone need neither.
_LAZY = {
    "Architecture": "sparse.architecture",
    "SparseConvNeXt": "sparse.encoder",
    "read_architecture": "sparse.architecture",
}


class UnsupportedModelError(ValueError):
    """The dense model has a part that cannot run at visible sites only; the message names it."""


class BackendUnavailableError(ImportError):
    """A backend was asked for whose library cannot be imported on this machine."""


class SparseArray:
    """Nothing: scipy and scikit-learn ask any loaded module named `sparse` for this class.

    They mean PyData's package of that name, and functions of theirs fail where it is missing.
    Held by test_scipy_works_beside_our_package_named_sparse.
    """


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sparse' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
