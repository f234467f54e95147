"""The contract of the native backend where there is no compiler."""

from __future__ import annotations

import pytest
from backend_contract import BackendContract, Encoder
from timm.models.convnext import ConvNeXt

from sparse import SparseConvNeXt
from sparse.ops import activation_compiled, depthwise_compiled


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (depthwise_compiled, activation_compiled):
        monkeypatch.setattr(module, "load_kernels", lambda dtype, name="": None)


class TestNativeWithoutCompiler(BackendContract):
    def build(self, dense: ConvNeXt, *, patch_size: int, grn_scope: str) -> Encoder:
        return SparseConvNeXt(dense, backend="native", grn_scope=grn_scope, patch_size=patch_size)
