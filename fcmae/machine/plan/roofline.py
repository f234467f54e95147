"""What a step of pretraining must compute and move, stage by stage, and the least time it takes.

Counted from the architecture, so that a measurement on any hardware can be held against it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fcmae.errors import ConfigError
from fcmae.model.autoencoder import FCMAE, create_anywhere
from fcmae.settings.pretrain import PretrainConfig

FORWARD_PASSES = 3  # a backward pass costs two forward ones: gradients of inputs and of weights
# How often a block reads or writes its hidden layer (4 C wide) and a map of C, in both passes: each
# operation is a kernel of its own, but GELU and GRN, which are two forward and two backward.
HIDDEN_PASSES, NARROW_PASSES = 14, 23
OPTIMIZER_BYTES = 28  # per parameter: AdamW reads weight, gradient, two moments; writes three
STATE_BYTES = 16  # per parameter: weight, gradient and two moments in float32
LOW = 2  # bytes per value of bf16


@dataclass(frozen=True)
class Hardware:
    """One accelerator, by what can be reached of its vendor's figures.

    Attributes:
        name: as it is sold.
        flops: bf16 products per second.
        bytes: of its memory, per second.
        memory: bytes of it.
        link: bytes per second that each of several exchanges.
    """

    name: str
    flops: float
    bytes: float
    memory: float
    link: float


HARDWARE = {
    "a100": Hardware("NVIDIA A100 80 GB", 250e12, 1.9e12, 80e9, 200e9),
    "h100": Hardware("NVIDIA H100 80 GB", 800e12, 3.3e12, 80e9, 350e9),
    "h200": Hardware("NVIDIA H200 141 GB", 800e12, 4.6e12, 141e9, 350e9),
    "l40s": Hardware("NVIDIA L40S 48 GB", 290e12, 0.82e12, 48e9, 25e9),
}


def hardware(name: str) -> Hardware:
    """Return the accelerator of this name.

    Raises:
        ConfigError: it is not known.
    """
    if name.lower() not in HARDWARE:
        raise ConfigError(f"--for: got {name!r}, expected one of {', '.join(HARDWARE)}.")
    return HARDWARE[name.lower()]


@dataclass(frozen=True)
class Stage:
    """A part of a step.

    Attributes:
        name: of the part.
        flops: of products, forward and backward.
        bytes: read and written, in bf16 but for the optimizer's.
    """

    name: str
    flops: float
    bytes: float

    def seconds(self, machine: Hardware) -> float:
        """Return the least time that it takes: of its products or of its bytes."""
        return max(self.flops / machine.flops, self.bytes / machine.bytes)

    def bound(self, machine: Hardware) -> str:
        """Say what bounds it."""
        by_products = self.flops / machine.flops >= self.bytes / machine.bytes
        return "products" if by_products else "bytes"


def count_stages(config: PretrainConfig, batch: int) -> list[Stage]:
    """Return the parts of a step of `batch` images on one device, each with a bound of its own.

    Raises:
        ConfigError, UnsupportedModelError: as `create_model`.
    """
    with torch.device("meta"):
        model = create_anywhere(config)
    return stages_of(model, batch)


def stages_of(model: FCMAE, batch: int) -> list[Stage]:
    """Return the parts of a step of `batch` images of a model, which may lie on the meta device."""
    return [*_encoder(model, batch), *_decoder(model, batch), _optimizer(model)]


def num_parameters(config: PretrainConfig) -> int:
    """Return how many parameters train."""
    with torch.device("meta"):
        model = create_anywhere(config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def saved_bytes(config: PretrainConfig) -> float:
    """Return about how many bytes of activations a step keeps per image, in bf16.

    Of each block: its input, the normalised map, the hidden layer before and behind GELU.
    """
    with torch.device("meta"):
        model = create_anywhere(config)
    sizes = model.sparse_encoder.architecture
    visible = round((1 - model.effective_mask_ratio) * model.num_patches)
    total = 0.0
    for stride, width, depth in zip(sizes.strides, sizes.dims, sizes.depths, strict=True):
        total += visible * (model.patch_size // stride) ** 2 * depth * 11 * width
    cells = model.num_patches * (model.patch_size // sizes.total_stride) ** 2
    decoder = model.decoder.mask_token.numel()
    values = model.num_patches * model.patch_size**2 * model.in_chans
    return LOW * (total + cells * decoder * (11 * len(model.decoder.blocks) + 2) + 3 * values)


def _encoder(model: FCMAE, batch: int) -> Iterator[Stage]:
    sizes = model.sparse_encoder.architecture
    visible = round((1 - model.effective_mask_ratio) * model.num_patches)
    former_width, former_stride = sizes.in_chans, 1
    for number, stride in enumerate(sizes.strides):
        width, depth, kernel = sizes.dims[number], sizes.depths[number], sizes.kernel_sizes[number]
        rows = batch * visible * (model.patch_size // stride) ** 2
        entrance = 2 * width * former_width * (stride // former_stride) ** 2
        flops = rows * (entrance + depth * _block_flops(width, kernel))
        moved = LOW * rows * depth * (4 * HIDDEN_PASSES + NARROW_PASSES) * width
        yield Stage(f"encoder, stage {number + 1}", FORWARD_PASSES * flops, moved)
        former_width, former_stride = width, stride


def _decoder(model: FCMAE, batch: int) -> Iterator[Stage]:
    sizes = model.sparse_encoder.architecture
    side = model.patch_size // sizes.total_stride
    hidden = round(model.effective_mask_ratio * model.num_patches)
    width, depth = model.decoder.mask_token.numel(), len(model.decoder.blocks)
    cells = batch * side**2
    rows = cells * model.num_patches
    flops = cells * (model.num_patches - hidden) * 2 * sizes.dims[-1] * width
    flops += rows * depth * _block_flops(width, 7)
    moved = LOW * rows * depth * (4 * HIDDEN_PASSES + NARROW_PASSES) * width
    yield Stage("decoder", FORWARD_PASSES * flops, moved)
    outputs = model.decoder.head.weight.shape[0]
    values = cells * hidden * outputs
    pixels = batch * model.num_patches * side**2 * outputs
    # Targets in float32: patches are cut out, measured and normalised; the loss passes four times.
    flops = FORWARD_PASSES * 2 * values * width
    yield Stage("head, targets, loss", flops, 4 * (2 * pixels + 9 * values))


def _optimizer(model: FCMAE) -> Stage:
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Stage("AdamW and casts of weights", 0.0, count * (OPTIMIZER_BYTES + 4 + LOW))


def _block_flops(width: int, kernel: int) -> int:
    return 2 * width * (kernel**2 + 8 * width)
