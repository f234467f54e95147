"""What is measured: one piece of work on one model, as a function without arguments."""

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcmae.machine.bench import authors, vit_mae
from fcmae.machine.bench.vit_mae import VitMae
from fcmae.model.autoencoder import FCMAE
from fcmae.model.backbones import create_backbone
from fcmae.model.compiling import begin_call, compiled
from fcmae.model.masking import draw_visible
from fcmae.settings.sections import Compiling, OptimConfig
from fcmae.training.optimization import autocast, create_optimizer, parameter_groups
from sparse import SparseConvNeXt
from sparse.whole import native_blocks

ALTERNATIVES = ("dense", "vit_mae", authors.NAME)
PATCH = 32
NUM_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One thing to measure.

    Attributes:
        model: timm name of the encoder.
        contender: a backend, `dense` (the timm model: its supervised training, or its features in
            `evaluation`), `vit_mae`, or `authors`, whose code lies in `folder`.
        ratio: masking ratio; 0 for `dense`.
        precision: fp32 or bf16.
        part: forward, backward, step or evaluation.
        batch_size: images per step.
        image_size: pixels per side.
        compiling: whether torch.compile is used, and in which mode.
        threads: on a CPU; 0 leaves them as they are.
        is_on_canvas: whether Triton's kernels are kept out of it.
        folder: of the authors' repository.
    """

    model: str
    contender: str
    ratio: float
    precision: str
    part: str
    batch_size: int
    image_size: int
    compiling: Compiling = False
    threads: int = 0
    is_on_canvas: bool = False
    folder: str = ""

    @property
    def title(self) -> str:
        """Contender and what is special about it."""
        mode = f" ({self.compiling})" * (self.compiling not in (False, True, "default"))
        compiled = f" compiled{mode}" * self.is_compiled
        return self.contender + " on canvas" * self.is_on_canvas + compiled

    @property
    def is_compiled(self) -> bool:
        """Whether torch.compile is used."""
        return self.compiling is not False


def prepare(subject: Subject, device: torch.device) -> Callable[[], None]:
    """Build model and inputs, and return the work: one call is one step."""
    torch.manual_seed(0)
    shape = (subject.batch_size, 3, subject.image_size, subject.image_size)
    images = torch.randn(shape, device=device)
    make = _encoder
    if subject.contender in ALTERNATIVES or subject.part == "step":
        make = _training_step
    if subject.part == "evaluation":
        make = _evaluation
    work = make(subject, images, device)
    if subject.threads:
        work = _with_threads(work, subject.threads)
    return _without_triton(work) if subject.is_on_canvas else work


def _with_threads(work: Callable[[], None], threads: int) -> Callable[[], None]:
    def on_threads() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work()
        finally:
            torch.set_num_threads(before)

    return on_threads


def _without_triton(work: Callable[[], None]) -> Callable[[], None]:
    def on_canvas() -> None:
        before = os.environ.get("FCMAE_TRITON")
        os.environ["FCMAE_TRITON"] = "0"
        try:
            work()
        finally:
            os.environ.pop("FCMAE_TRITON")
            if before is not None:
                os.environ["FCMAE_TRITON"] = before

    return on_canvas


def _mask(subject: Subject, device: torch.device) -> Tensor:
    """Draw the visible patches of a batch, [N, K]; a ViT-MAE has its own grid of patches."""
    generator = torch.Generator().manual_seed(1)
    patch = vit_mae.PATCH if subject.contender == "vit_mae" else PATCH
    num_patches = (subject.image_size // patch) ** 2
    visible = torch.arange(num_patches).expand(subject.batch_size, -1)
    if subject.ratio:
        visible = draw_visible(subject.batch_size, num_patches, subject.ratio, generator)
    return visible.to(device)


def _encoder(subject: Subject, images: Tensor, device: torch.device) -> Callable[[], None]:
    dense = create_backbone(subject.model, in_chans=3)
    encoder: Any = SparseConvNeXt(dense, backend=subject.contender).to(device)  # type: ignore[arg-type]
    visible = _mask(subject, device)
    run = compiled(encoder, subject.compiling)

    def forward() -> None:
        begin_call(subject.compiling, device)
        with torch.no_grad(), autocast(device, subject.precision):
            run(images, visible)

    def forward_and_backward() -> None:
        encoder.zero_grad(set_to_none=True)
        begin_call(subject.compiling, device)
        with autocast(device, subject.precision):
            features = run(images, visible)
        features.sum().backward()

    return forward if subject.part == "forward" else forward_and_backward


def _evaluation(subject: Subject, images: Tensor, device: torch.device) -> Callable[[], None]:
    model: Any = create_backbone(subject.model, in_chans=3).to(device).eval()
    exchanging = native_blocks if subject.contender == "native" else contextlib.nullcontext

    def features() -> None:
        with torch.no_grad(), autocast(device, subject.precision), exchanging(model):
            model.forward_features(images).mean(dim=(2, 3))

    return features


def _training_step(subject: Subject, images: Tensor, device: torch.device) -> Callable[[], None]:
    model, loss_of = _trained_model(subject, device)
    groups = parameter_groups(model.named_parameters(), 0.05)
    optimizer = create_optimizer(groups, OptimConfig(base_lr=1e-4), device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        begin_call(subject.compiling, device)
        with autocast(device, subject.precision):
            loss = loss_of(images)
        loss.backward()
        optimizer.step()

    return step


def _trained_model(
    subject: Subject, device: torch.device
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return a model, and the function from images to its loss in which it is compiled.

    The mask is drawn before: readers draw those of a training.
    """
    if subject.contender == "dense":
        dense = create_backbone(subject.model, in_chans=3, num_classes=NUM_CLASSES)
        # The faster layout on CPU and GPU.
        dense = dense.to(device, memory_format=torch.channels_last)
        classify = compiled(dense, subject.compiling)
        labels = torch.arange(subject.batch_size, device=device) % NUM_CLASSES

        def classification_loss(images: Tensor) -> Tensor:
            logits = classify(images.contiguous(memory_format=torch.channels_last))
            return F.cross_entropy(logits.float(), labels)

        return dense, classification_loss
    if subject.contender == authors.NAME:
        model, loss_of = authors.authors_model(
            subject.folder, subject.model, subject.image_size, subject.ratio
        )
        return model.to(device), loss_of
    visible = _mask(subject, device)
    if subject.contender == "vit_mae":
        with torch.device("meta"):
            size = sum(p.numel() for p in create_backbone(subject.model, in_chans=3).parameters())
        vit = VitMae(size, subject.image_size).to(device)
        loss_of_vit = compiled(vit, subject.compiling)
        return vit, lambda images: loss_of_vit(images, visible)
    fcmae = FCMAE(
        subject.model,
        image_size=subject.image_size,
        mask_ratio=subject.ratio,
        backend=subject.contender,  # type: ignore[arg-type]
    ).to(device)
    network = compiled(fcmae, subject.compiling)
    return fcmae, lambda images: network(images, visible).loss
