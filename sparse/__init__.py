"""Sparse ConvNeXt encoders: a timm ConvNeXt computed at the visible patches of masked images.

Knows sites, features and convolutions; nothing of masks' origin, losses or training.
"""

from sparse.architecture import Architecture, read_architecture
from sparse.encoder import SparseConvNeXt
from sparse.errors import BackendUnavailableError, UnsupportedModelError

__all__ = [
    "Architecture",
    "BackendUnavailableError",
    "SparseConvNeXt",
    "UnsupportedModelError",
    "read_architecture",
]
