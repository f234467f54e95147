"""The native and masked_dense backends keep the contract of sparse encoders."""

from __future__ import annotations

from backend_contract import BackendContract, Encoder
from timm.models.convnext import ConvNeXt

from sparse import SparseConvNeXt


class TestNative(BackendContract):
    def build(self, dense: ConvNeXt, *, patch_size: int, grn_scope: str) -> Encoder:
        return SparseConvNeXt(dense, backend="native", grn_scope=grn_scope, patch_size=patch_size)


class TestMaskedDense(BackendContract):
    def build(self, dense: ConvNeXt, *, patch_size: int, grn_scope: str) -> Encoder:
        return SparseConvNeXt(
            dense, backend="masked_dense", grn_scope=grn_scope, patch_size=patch_size
        )
