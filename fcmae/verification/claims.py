"""Measures each claim of the certificate on one model."""

import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from fcmae.errors import BackendUnavailableError, DataError
from fcmae.model.autoencoder import FCMAE
from fcmae.model.precision import autocast, multiplying
from fcmae.verification import holes, reference
from fcmae.verification.certificate import Line
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export_timm import export_timm
from sparse import SparseConvNeXt
from sparse.encoder import Backend, GrnScope

# Shares of the largest value. The same sums in another order; gradients add over all sites.
FEATURES_BOUND = {torch.float64: 1e-10, torch.float32: 1e-5}
GRADIENTS_BOUND = {torch.float64: 1e-10, torch.float32: 1e-4}
# A parameter whose gradients nearly cancel is measured against this share of the largest gradient.
GRADIENT_FLOOR = 1e-3
NAMES = {torch.float64: "float64", torch.float32: "float32"}
# Of features, where products keep fewer bits; 10 of them in tf32 and fp16, 7 in bf16.
LOW_BOUNDS = {"tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
LOW_PRECISIONS = {"cpu": ("bf16",), "cuda": ("tf32", "bf16", "fp16")}


class _Encoder(NamedTuple):
    """A sparse encoder on its device, for tensors on the CPU."""

    sparse: SparseConvNeXt
    device: torch.device

    def __call__(self, images: Tensor, visible: Tensor) -> Tensor:
        features: Tensor = self.sparse(images.to(self.device), visible.to(self.device))
        return features.cpu()


class Case(NamedTuple):
    """The model under test and one batch.

    Attributes:
        model: the whole FCMAE, float32, evaluation mode.
        info: of its encoder.
        grn_scope: `image` or `batch`.
        images: [N, C, H, W], float64, N >= 2.
        visible: LongTensor [N, K].
        device: where everything but the reference computes; the tensors above are on the CPU.
    """

    model: FCMAE
    info: EncoderInfo
    grn_scope: GrnScope
    images: Tensor
    visible: Tensor
    device: torch.device = torch.device("cpu")

    def encoder(self, backend: Backend, dtype: torch.dtype = torch.float32) -> _Encoder:
        """Return a sparse encoder on a copy of the weights."""
        dense = copy.deepcopy(self.model.encoder).to(self.device, dtype)
        sparse = SparseConvNeXt(
            dense, backend=backend, grn_scope=self.grn_scope, patch_size=self.model.patch_size
        )
        return _Encoder(sparse.eval().to(self.device), self.device)

    def predict(self, images: Tensor) -> Tensor:
        """Return the whole model's predictions, on the CPU."""
        model = copy.deepcopy(self.model).to(self.device)
        prediction: Tensor = model(images.to(self.device), self.visible).prediction
        return prediction.cpu()

    def with_hidden(self, value: float) -> Tensor:
        """Return the images, float32, with every hidden pixel replaced."""
        is_hidden = ~self.is_visible_pixel()
        return self.images.float().masked_fill(is_hidden, value)

    def is_visible_pixel(self) -> Tensor:
        """Return bool [N, 1, H, W]."""
        rows, columns = self.model.grid
        is_visible = torch.zeros(len(self.images), rows * columns, dtype=torch.bool)
        is_visible.scatter_(1, self.visible, value=True)
        side = self.model.patch_size
        grid = is_visible.view(-1, 1, rows, columns)
        return grid.repeat_interleave(side, 2).repeat_interleave(side, 3)


class Results(NamedTuple):
    """Features and the gradients of their weighted sum, by parameter; the images' under ''."""

    features: Tensor
    gradients: dict[str, Tensor]


def measure(case: Case) -> Iterator[Line]:
    """Yield the lines of the certificate, one after another."""
    expected = run_reference(case)
    native: dict[torch.dtype, Results] = {}
    hidden_gradient = 0.0
    for backend in ("native", "masked_dense"):
        for dtype in (torch.float64, torch.float32):
            results = run_backend(case, backend, dtype)
            yield from compare(f"{backend} = reference", results, expected, dtype)
            hidden_gradient = max(hidden_gradient, largest(hidden_part(case, results)))
            if backend == "native":
                native[dtype] = results
        for precision in LOW_PRECISIONS[case.device.type]:
            gap = difference(run_low(case, backend, precision), expected.features)
            title = f"{backend} = reference, {precision}: features"
            yield Line(title, gap, LOW_BOUNDS[precision])
    backends: list[Backend] = ["native", "masked_dense"]
    try:
        case.encoder("minkowski")
    except BackendUnavailableError as error:
        why = "not installed" if "not installed" in str(error) else "present but broken"
        yield Line("minkowski = native", None, note=f"MinkowskiEngine is {why}.")
    else:
        backends.append("minkowski")
        for dtype in (torch.float64, torch.float32):
            results = run_backend(case, "minkowski", dtype)
            yield from compare("minkowski = native", results, native[dtype], dtype)
            hidden_gradient = max(hidden_gradient, largest(hidden_part(case, results)))
    yield from decoded(case, expected.features)
    yield from hidden_pixels(case, backends, hidden_gradient)
    yield from invalid_pixels(case)
    yield from batch_mates(case, backends)
    yield from fully_visible(case)
    yield exported(case)


def run_reference(case: Case) -> Results:
    """Run the reference in float64."""
    dense: Any = copy.deepcopy(case.model.encoder).double()
    images = case.images.clone().requires_grad_()
    features = reference.encode(
        dense,
        images,
        case.visible,
        case.model.patch_size,
        grn_over_batch=case.grn_scope == "batch",
    )
    return _with_gradients(features, images, dense)


def run_backend(case: Case, backend: Backend, dtype: torch.dtype) -> Results:
    """Run a backend in one precision."""
    encoder = case.encoder(backend, dtype)
    images = case.images.to(dtype, copy=True).requires_grad_()
    return _with_gradients(encoder(images, case.visible), images, encoder.sparse.dense)


@torch.no_grad()
def run_low(case: Case, backend: Backend, precision: str) -> Tensor:
    """Return the features of a backend that computes as a training in this precision does."""
    with multiplying(precision), autocast(case.device, precision):
        return case.encoder(backend)(case.images.float(), case.visible)


def decoded(case: Case, features: Tensor) -> Iterator[Line]:
    """Yield lines on what the whole model predicts of hidden patches.

    Args:
        case: of the model.
        features: of visible patches, by the reference.
    """
    grid, cell = case.model.grid, case.model.sparse_encoder.architecture.total_stride
    judge = copy.deepcopy(case.model.decoder).double()
    cells = reference.predict(judge, features, case.visible, grid)  # [N, L, m, m, V]
    pixels = cells.unflatten(4, (cell, cell, -1)).transpose(3, 4).flatten(2)  # [N, L, P * P * C]
    is_hidden = torch.ones(pixels.shape[:2], dtype=torch.bool).scatter(1, case.visible, value=False)
    expected = _with_gradients(pixels[is_hidden], features, judge)
    for dtype in (torch.float64, torch.float32):
        model = copy.deepcopy(case.model).to(case.device, dtype)
        images = case.images.to(case.device, dtype)
        prediction = model(images, case.visible).hidden_prediction.flatten(0, 1)
        found = _with_gradients(prediction, images, model.decoder)
        yield from compare("decoder = reference", found, expected, dtype, "predictions")


def hidden_part(case: Case, results: Results) -> Tensor:
    """Return the gradient of the features by each value of a hidden pixel."""
    return results.gradients[""].masked_select(~case.is_visible_pixel())


def compare(
    title: str, found: Results, expected: Results, dtype: torch.dtype, what: str = "features"
) -> Iterator[Line]:
    """Yield a line on features, or `what` they are, and one on the gradients of parameters."""
    gap = difference(found.features, expected.features)
    yield Line(f"{title}, {NAMES[dtype]}: {what}", gap, FEATURES_BOUND[dtype])
    names = [name for name in expected.gradients if name]
    floor = GRADIENT_FLOOR * max(largest(expected.gradients[name]) for name in names)
    gaps = [difference(found.gradients[n], expected.gradients[n], floor) for n in names]
    worst = float(torch.tensor(gaps).max())  # NaN stays NaN
    yield Line(f"{title}, {NAMES[dtype]}: gradients of parameters", worst, GRADIENTS_BOUND[dtype])


@torch.no_grad()
def hidden_pixels(case: Case, backends: list[Backend], gradient: float) -> Iterator[Line]:
    """Yield lines on what hidden pixels do to features, predictions and gradients."""
    for backend in backends:
        encoder = case.encoder(backend)
        before = encoder(case.images.float(), case.visible)
        change = 0.0
        for value in (1e6, float("nan")):
            after = encoder(case.with_hidden(value), case.visible)
            change = max(change, exact_change(after, before))
        yield Line(f"hidden pixels replaced, {backend}: change of features", change, 0)
    before, after = (case.predict(x) for x in (case.images.float(), case.with_hidden(1e6)))
    yield Line("hidden pixels replaced: change of predictions", exact_change(after, before), 0)
    yield Line("gradient of features by hidden pixels", gradient, 0)


def invalid_pixels(case: Case) -> Iterator[Line]:
    """Yield lines on what pixels without data do to features, predictions and the loss."""
    claim = "invalid pixels replaced"
    try:
        found = [holes.run(case.model, value, case.device) for value in (0.25, 1.0, float("nan"))]
    except DataError as error:
        yield Line(f"{claim}: change of features", None, note=f"{error.args[-1]}.")
        return
    first, *others = found
    for name in ("features", "predictions", "loss"):
        before = getattr(first, name)
        change = max(exact_change(getattr(other, name), before) for other in others)
        yield Line(f"{claim}: change of {name}", change, 0)
    worst = max(largest(one.unscored_gradient) for one in found)
    yield Line("gradient of loss by predictions of invalid pixels", worst, 0)


@torch.no_grad()
def batch_mates(case: Case, backends: list[Backend]) -> Iterator[Line]:
    """Yield lines on what the other images of the batch do to the first one's features."""
    images, mates = case.images.float(), case.images.float()
    mates[1:] = -3 * mates[1:] + 1
    moved = case.visible.clone()
    moved[1:] = (moved[1:] + 1) % case.model.num_patches
    if case.grn_scope == "batch":
        encoder = case.encoder("native")
        before, after = (encoder(x, case.visible)[0] for x in (images, mates))
        title = "other images replaced, GRN over the batch: change of features"
        yield Line(title, difference(after, before))
        return
    for backend in backends:
        # ME's rows change their order with the masks of others, and with it the order of sums.
        is_ordered = backend != "minkowski"
        encoder = case.encoder(backend)
        before = encoder(images, case.visible)[0]
        after = encoder(mates, moved if is_ordered else case.visible)[0]
        what = "images and masks" if is_ordered else "images"
        title = f"other {what} replaced, {backend}: change of features"
        yield Line(title, exact_change(after, before), 0)


@torch.no_grad()
def fully_visible(case: Case) -> Iterator[Line]:
    """Yield lines on the sparse encoder with nothing hidden beside the dense timm model."""
    num = case.model.num_patches
    for dtype in (torch.float64, torch.float32):
        encoder = case.encoder("native", dtype)
        dense: Any = encoder.sparse.dense
        images = case.images.to(dtype)[:1]
        found = as_map(encoder(images, torch.arange(num).unsqueeze(0)), case.model.grid)
        gap = difference(found, dense.forward_features(images.to(case.device)).cpu())
        yield Line(f"all visible = dense timm model, {NAMES[dtype]}", gap, FEATURES_BOUND[dtype])
    if case.grn_scope == "batch":
        visible = torch.arange(num).repeat(len(case.images), 1)
        found = as_map(encoder(case.images.float(), visible), case.model.grid)
        gap = difference(found, dense.forward_features(case.images.float().to(case.device)).cpu())
        title = f"all visible, batch of {len(visible)}, GRN over the batch: beside the dense model"
        yield Line(title, gap)


@torch.no_grad()
def exported(case: Case) -> Line:
    """Return the line on the exported file, loaded by timm alone."""
    info = case.info
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.safetensors"
        export_timm(case.model.encoder, path, info)
        stem = {} if info.stem_stride == 4 else {"patch_size": info.stem_stride}
        loaded: Any = timm.create_model(
            info.model_name,
            num_classes=0,
            in_chans=info.in_chans,
            checkpoint_path=str(path),
            **stem,
        ).eval()
        loaded.to(case.device)
    images = case.images.float()[:1]
    everything = torch.arange(case.model.num_patches).unsqueeze(0)
    found = as_map(case.encoder("native")(images, everything), case.model.grid)
    gap = difference(loaded.forward_features(images.to(case.device)).cpu(), found)
    return Line("exported file in timm = all visible, float32", gap, FEATURES_BOUND[torch.float32])


def as_map(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arrange the features of all patches, in order: [N, L, m, m, D] -> [N, D, H, W]."""
    rows = features.unflatten(1, grid).permute(0, 5, 1, 3, 2, 4)
    return rows.flatten(4).flatten(2, 3)


def difference(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Return the largest difference as a share of the largest expected value, or of `floor`.

    It is NaN when a value is, and infinite when only one side is zero everywhere.
    """
    gap = float((found.double() - expected.double()).abs().max())
    scale = max(largest(expected), floor)
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))


def exact_change(after: Tensor, before: Tensor) -> float:
    """Return the largest absolute change; infinite when NaN or infinity came in."""
    gap = float((after - before).abs().max())
    return gap if gap < float("inf") else float("inf")


def largest(values: Tensor) -> float:
    """Return the largest absolute value, 0 of nothing."""
    return float(values.detach().double().abs().max()) if values.numel() else 0.0


def _with_gradients(features: Tensor, images: Tensor, module: nn.Module) -> Results:
    """Return features and gradients by `images`, where they ask for one, and by parameters."""
    rng = torch.Generator().manual_seed(17)
    weights = torch.randn(features.shape, generator=rng, dtype=torch.float64).to(features)
    named = {n: p for n, p in module.named_parameters() if not n.startswith("head.norm.")}
    for parameter in named.values():
        parameter.requires_grad_()
    wanted = {"": images} if images.requires_grad else {}
    wanted |= named
    gradients = torch.autograd.grad((features * weights).sum(), list(wanted.values()))
    on_cpu = (gradient.cpu() for gradient in gradients)
    return Results(features.detach().cpu(), dict(zip(wanted, on_cpu, strict=True)))
