"""How much arithmetic an encoder's visible sites need, and how fast this machine multiplies."""

import time

import torch
import torch.nn.functional as F

from fcmae.machine.bench.subjects import PATCH, Subject
from fcmae.machine.plan.roofline import stages_of
from fcmae.model.autoencoder import FCMAE
from fcmae.model.backbones import create_backbone
from fcmae.model.masking import num_visible_patches
from sparse.architecture import read_architecture
from sparse.ops.linear import linear

SIDE = 2048
REPEATS = 5
# backward: one more for the inputs, one for the weights
PASSES = {"forward": 1, "evaluation": 1, "backward": 3}


def counted_flops(subject: Subject) -> float:
    """Count the floating-point operations of an encoder at visible sites, or of a whole step.

    Convolutions and linear layers, two operations per multiply-add, every tap of the depthwise
    kernel counted.
    """
    if subject.part not in PASSES:
        with torch.device("meta"):
            model = FCMAE(subject.model, image_size=subject.image_size, mask_ratio=subject.ratio)
        return sum(stage.flops for stage in stages_of(model, subject.batch_size))
    with torch.device("meta"):
        architecture = read_architecture(create_backbone(subject.model, in_chans=3))
    patches = (subject.image_size // PATCH) ** 2
    if subject.ratio:
        patches = num_visible_patches(patches, subject.ratio)
    total, previous_width, previous_stride = 0, architecture.in_chans, 1
    for stride, width, depth, kernel in zip(
        architecture.strides,
        architecture.dims,
        architecture.depths,
        architecture.kernel_sizes,
        strict=True,
    ):
        sites = patches * (PATCH // stride) ** 2
        per_block = width * (kernel**2 + 8 * width)  # depthwise, and two linear layers C <-> 4 C
        entrance = width * previous_width * (stride // previous_stride) ** 2
        total += sites * (entrance + depth * per_block)
        previous_width, previous_stride = width, stride
    return 2 * total * subject.batch_size * PASSES[subject.part]


def matmul_rates(device: torch.device, precision: str) -> dict[str, float]:
    """Measure square matrix products: operations per second by torch, and by our linear layer."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in range(2))
    rates = {}
    for name, multiply in (("torch", F.linear), ("sparse.ops.linear", linear)):
        best = float("inf")
        for _ in range(REPEATS):
            _wait(device)
            start = time.perf_counter()
            with torch.no_grad():
                multiply(a, b, None)
            _wait(device)
            best = min(best, time.perf_counter() - start)
        rates[name] = 2 * SIDE**3 / best
    return rates


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
