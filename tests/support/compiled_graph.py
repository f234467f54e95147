"""What torch.compile sees of an encoder."""

import torch
from backend_contract import small_convnext
from torch import Tensor

from sparse import SparseConvNeXt


def operations_of_one_graph() -> str:
    """Return the operations in an encoder's graph under autocast, which must be one."""
    # Of few taps: Triton's interpreter takes milliseconds for each.
    encoder = SparseConvNeXt(small_convnext(kernel_sizes=3).float())
    images, visible = torch.randn(2, 3, 64, 64), torch.tensor([[0, 3], [1, 2]])

    def loss(images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features: Tensor = encoder(images, visible)
        return features.sum()

    # Without gradients the functions with a backward of their own are seen from inside.
    for is_training in (True, False):
        torch._dynamo.reset()
        with torch.set_grad_enabled(is_training):
            found = torch._dynamo.explain(loss)(images)
        assert (found.graph_count, found.graph_break_count) == (1, 0)
    return " ".join(str(operation) for operation in found.ops_per_graph[0])
