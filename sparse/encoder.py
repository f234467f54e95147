"""The sparse encoder: one contract over interchangeable backends."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor, nn

from sparse.architecture import read_architecture
from sparse.backends import masked_dense, minkowski, native
from sparse.sites import VisiblePatches

Backend = Literal["native", "masked_dense", "minkowski"]
GrnScope = Literal["image", "batch"]


class SparseConvNeXt(nn.Module):
    """Computes a ConvNeXt at the visible patches of images, as a submanifold sparse network does.

    The parameters are those of `dense`, so pretraining it is training the dense model.

    Attributes:
        dense: the timm ConvNeXt.
        architecture: its strides, widths and depths.
        patch_size: side of a patch in pixels.
    """

    def __init__(
        self,
        dense: nn.Module,
        *,
        backend: Backend = "native",
        grn_scope: GrnScope = "image",
        patch_size: int | None = None,
    ) -> None:
        """Wrap `dense`, a timm ConvNeXt (V1 or V2) with a non-overlapping stem.

        Args:
            dense: the model that owns the parameters.
            backend: `native` gathers visible patches, `masked_dense` zeroes hidden sites,
                `minkowski` runs MinkowskiEngine's layers.
            grn_scope: GRN pools over one `image` (the paper) or the `batch` (the released code).
            patch_size: side of a patch in pixels, a multiple of the total stride; None means the
                total stride.

        Raises:
            UnsupportedModelError: a layer of `dense` cannot run at visible sites only.
            BackendUnavailableError: MinkowskiEngine was asked for and cannot be imported.
            ValueError: unknown backend or scope, or a patch size that cells do not tile.
        """
        super().__init__()
        _check_choice("backend", backend, get_args(Backend))
        _check_choice("grn_scope", grn_scope, get_args(GrnScope))
        self.architecture = read_architecture(dense)
        stride = self.architecture.total_stride
        self.patch_size = stride if patch_size is None else patch_size
        if self.patch_size <= 0 or self.patch_size % stride:
            raise ValueError(
                f"patch_size: {self.patch_size} px is not a multiple of the model's total stride "
                f"({stride} px). Use {stride}, {2 * stride} or another multiple."
            )
        self.dense = dense
        self.backend = backend
        self.grn_scope = grn_scope
        self._encode: Callable[..., Tensor]
        if backend == "minkowski":
            twin = minkowski.MinkowskiConvNeXt(minkowski.without_storage(dense))
            self._encode = functools.partial(minkowski.encode, twin)
        else:
            self._encode = native.encode if backend == "native" else masked_dense.encode

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Encode visible patches only.

        Args:
            images: [N, C, H, W], H and W multiples of the patch size.
            visible: LongTensor [N, K], different row-major patch indices per image.

        Returns:
            Features [N, K, m, m, D], m = patch side / total stride, in the order of `visible`.

        Raises:
            ValueError: shapes that do not fit each other or the model.
        """
        channels = self.architecture.in_chans
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images: got shape {list(images.shape)}, expected [N, {channels}, H, W]."
            )
        height, width = images.shape[2:]
        if not height or not width or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images: {height} x {width} px is not tiled by patches of {self.patch_size} px; "
                "both sides must be multiples of the patch size."
            )
        if visible.shape[0] != images.shape[0]:
            raise ValueError(
                f"visible: got {visible.shape[0]} rows for {images.shape[0]} images; "
                "expected one row of patch indices per image."
            )
        patches = VisiblePatches.from_indices(
            visible, height // self.patch_size, width // self.patch_size
        )
        over_batch = self.grn_scope == "batch"
        return self._encode(self.dense, images, patches, grn_over_batch=over_batch)

    def extra_repr(self) -> str:
        """Say what cannot be seen from the submodules."""
        return f"backend={self.backend}, grn_scope={self.grn_scope}, patch_size={self.patch_size}"


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(choices)}.")
