"""The contract of every sparse backend: subclass BackendContract and say how to build the encoder.

The cases vary one thing at a time around a small ConvNeXt whose sizes differ pairwise and whose
every parameter, GRN weights and layer scales included, is random.
"""

from __future__ import annotations

import abc
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import naive
import pytest
import torch
from comparison import assert_relative, assert_same_bits
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

Encoder = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One model, one batch and one choice of visible patches.

    `visible` is a number of random patches per image, or `last row and column hidden`.
    """

    name: str
    version: int = 2
    batch: int = 2
    grid: tuple[int, int] = (2, 3)
    visible: int | str = 2
    grn_scope: str = "image"
    patch_size: int = 32
    stem_stride: int = 4
    in_chans: int = 3
    kernel_size: int = 7
    conv_mlp: bool = False
    conv_bias: bool = True
    head_norm_first: bool = False
    is_blank: bool = False
    is_sorted: bool = True

    @functools.cached_property
    def dense(self) -> ConvNeXt:
        """The model in float64; callers take copies."""
        return small_convnext(
            version=self.version,
            in_chans=self.in_chans,
            patch_size=self.stem_stride,
            kernel_sizes=self.kernel_size,
            conv_mlp=self.conv_mlp,
            conv_bias=self.conv_bias,
            head_norm_first=self.head_norm_first,
        )

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] in float64, the first blank if asked for, and visible [N, K]."""
        rng = torch.Generator().manual_seed(11)
        height, width = (side * self.patch_size for side in self.grid)
        shape = (self.batch, self.in_chans, height, width)
        images = torch.randn(shape, generator=rng, dtype=torch.float64)
        if self.is_blank:
            images[0] = 0
        return images, self.draw(rng)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Draw the visible patches of each image."""
        rows, columns = self.grid
        candidates, count = list(range(rows * columns)), self.visible
        if isinstance(count, str):
            candidates = [p for p in candidates if p // columns < rows - 1]
            candidates = [p for p in candidates if p % columns < columns - 1]
            count = len(candidates)
        noise = torch.rand(self.batch, len(candidates), generator=rng)
        visible = torch.tensor(candidates)[noise.argsort(dim=1)[:, :count]]
        return visible.sort(dim=1).values if self.is_sorted else visible

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Features, gradient of the image and of every parameter, by the naive reference."""
        images, visible = self.inputs()
        images.requires_grad_()
        features = naive.encode(self.dense, images, visible, self.patch_size, self.grn_scope)
        parameters = used_parameters(self.dense)
        loss = (features * loss_weights(features)).sum()
        gradients = torch.autograd.grad(loss, [images, *parameters.values()])
        return features.detach(), gradients[0], dict(zip(parameters, gradients[1:], strict=True))


def small_convnext(*, version: int = 2, seed: int = 5, **settings: object) -> ConvNeXt:
    """Create a four-stage ConvNeXt in float64 with every parameter random."""
    arguments: dict[str, object] = {
        "num_classes": 0,
        "dims": (3, 5, 6, 7),
        "depths": (1, 1, 2, 1),
        "use_grn": version == 2,
        "ls_init_value": None if version == 2 else 1.0,
    }
    return randomize(ConvNeXt(**(arguments | settings)).double(), seed)


def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Redraw every parameter: about 1 for norms and layer scales, spread of any sign elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            is_scale = parameter.dim() == 1 and name.endswith(("norm.weight", ".0.weight", "gamma"))
            spread = 0.5 if parameter.dim() == 1 else 1 / parameter[0].numel() ** 0.5
            parameter.copy_(noise * spread + float(is_scale))
    return model


def used_parameters(dense: ConvNeXt) -> dict[str, nn.Parameter]:
    """Every parameter that features depend on: all but the norm of the head."""
    return {n: p for n, p in dense.named_parameters() if not n.startswith("head.")}


def loss_weights(features: Tensor) -> Tensor:
    """Random weights that turn features into a scalar no symmetry can hide in."""
    rng = torch.Generator().manual_seed(17)
    return torch.randn(features.shape, generator=rng, dtype=torch.float64).to(features)


CASES = [
    Case("V2"),
    Case("V2, GRN over the batch", grn_scope="batch"),
    Case("V2, 1x1 convolutions", conv_mlp=True),
    Case("V2, 1x1 convolutions, GRN over the batch", conv_mlp=True, grn_scope="batch"),
    Case("V1", version=1),
    Case("V1, 1x1 convolutions", version=1, conv_mlp=True),
    Case("V1, norm before the head", version=1, head_norm_first=True),
    Case("one image", batch=1),
    Case("five images", batch=5, grid=(2, 2), visible=1),
    Case("tall grid", grid=(3, 1), visible=2),
    Case("one visible patch", visible=1),
    Case("all but one visible", batch=1, visible=5),
    Case("all visible", grid=(2, 2), visible=4),
    Case("blank image", is_blank=True),
    Case("last row and column hidden", grid=(3, 2), visible="last row and column hidden"),
    Case("patches of 64 px", batch=1, patch_size=64, grid=(2, 2), visible=2),
    Case("stem stride 2", stem_stride=2),
    Case("stem stride 1", stem_stride=1, patch_size=8),
    Case(
        "stem stride 1, patches of two cells", stem_stride=1, patch_size=16, grid=(1, 2), visible=1
    ),
    Case("grey", in_chans=1),
    Case("seven channels", in_chans=7),
    Case("3x3 kernels", kernel_size=3),
    Case("9x9 kernels", kernel_size=9),
    Case("no convolution bias", conv_bias=False),
    Case("unsorted visible patches", visible=3, is_sorted=False),
]


class BackendContract(abc.ABC):
    """Inherited by one test class per backend."""

    @abc.abstractmethod
    def build(self, dense: ConvNeXt, *, patch_size: int, grn_scope: str) -> Encoder:
        """Return the encoder with the weights and the dtype of `dense`."""

    def unsupported(self, case: Case) -> str | None:
        """Say why this backend does not do `case`, if so."""
        return None

    def dense_gradients(self, encoder: Encoder, dense: ConvNeXt) -> dict[str, Tensor | None]:
        """Return the gradients after backward, by the dense model's parameter names."""
        return {name: parameter.grad for name, parameter in used_parameters(dense).items()}

    def build_case(self, case: Case, dtype: torch.dtype) -> tuple[ConvNeXt, Encoder]:
        """Return a fresh copy of the case's model and the encoder on it, or skip."""
        reason = self.unsupported(case)
        if reason:
            pytest.skip(reason)
        dense = fresh_copy(case.dense, dtype)
        return dense, self.build(dense, patch_size=case.patch_size, grn_scope=case.grn_scope)

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_outputs_and_all_gradients_equal_the_naive_reference(self, case: Case) -> None:
        dense, encoder = self.build_case(case, torch.float64)
        images, visible = case.inputs()
        images.requires_grad_()
        features = encoder(images, visible)
        expected, image_gradient, parameter_gradients = case.expected
        tolerance = 1e-10  # the same sums in another order, float64
        assert_relative(features, expected, tolerance)
        (features * loss_weights(features)).sum().backward()
        assert_relative(images.grad, image_gradient, tolerance)
        gradients = self.dense_gradients(encoder, dense)
        assert gradients.keys() == parameter_gradients.keys()
        for name, gradient in gradients.items():
            assert gradient is not None, f"{name} has no gradient"
            scale = max(float(parameter_gradients[name].abs().max()), 1e-3)
            torch.testing.assert_close(
                gradient, parameter_gradients[name], rtol=0, atol=tolerance * scale, msg=name
            )

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_float32_outputs_are_within_1e_5_of_the_naive_reference(self, case: Case) -> None:
        _, encoder = self.build_case(case, torch.float32)
        images, visible = case.inputs()
        assert_relative(encoder(images.float(), visible), case.expected[0], 1e-5)

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("grn_scope", ["image", "batch"])
    @pytest.mark.parametrize("pixel", [1e6, float("inf"), float("nan")])
    def test_hidden_pixels_change_no_feature_and_no_gradient_bit_for_bit(
        self, version: int, grn_scope: str, pixel: float
    ) -> None:
        case = Case("leakage", version=version, grn_scope=grn_scope)
        images, visible = case.inputs()
        changed = paint_hidden(images, visible, case, pixel)
        results = []
        for batch in (images, changed):
            dense, encoder = self.build_case(case, torch.float32)
            batch = batch.float().requires_grad_()
            features = encoder(batch, visible)
            features.square().sum().backward()
            results.append((features, batch.grad, self.dense_gradients(encoder, dense)))
        (features, image_gradient, gradients), (again, image_again, gradients_again) = results
        assert_same_bits(again, features)
        assert_same_bits(image_again, image_gradient)
        hidden = paint_hidden(torch.zeros_like(images), visible, case, 1.0).bool()
        assert image_again[hidden].eq(0).all()
        for name, gradient in gradients.items():
            assert_same_bits(gradients_again[name], gradient)

    @pytest.mark.parametrize("version", [1, 2])
    def test_output_does_not_depend_on_batch_mates(self, version: int) -> None:
        case = Case("batch mates", version=version, batch=3, visible=3)
        _, encoder = self.build_case(case, torch.float32)
        images, visible = case.inputs()
        images, other, elsewhere = images.float(), images.float(), visible.clone()
        other[0], other[2] = 1e4, -3 * images[2]
        elsewhere[2] = torch.tensor([p for p in range(6) if p not in visible[2]])
        together = encoder(images, visible)
        assert_same_bits(encoder(other, elsewhere)[1], together[1])
        alone = encoder(images[1:2], visible[1:2])
        assert_relative(alone[0], together[1], 1e-5)  # other matrix sizes, other order of sums

    def test_grn_over_the_batch_does_couple_images(self) -> None:
        case = Case("coupled", grn_scope="batch")
        _, encoder = self.build_case(case, torch.float64)
        images, visible = case.inputs()
        other = images.clone()
        other[0] *= 3
        assert not torch.allclose(encoder(images, visible)[1], encoder(other, visible)[1])

    def test_features_follow_the_order_of_visible(self) -> None:
        case = Case("order", visible=3)
        _, encoder = self.build_case(case, torch.float64)
        images, visible = case.inputs()
        order = torch.tensor([2, 0, 1])
        shuffled = encoder(images, visible[:, order])
        assert_relative(shuffled, encoder(images, visible)[:, order], 1e-10)

    def test_permuting_images_permutes_features(self) -> None:
        case = Case("images", batch=3, visible=3)
        _, encoder = self.build_case(case, torch.float64)
        images, visible = case.inputs()
        order = torch.tensor([2, 0, 1])
        permuted = encoder(images[order], visible[order])
        assert_relative(permuted, encoder(images, visible)[order], 1e-10)

    def test_a_site_whose_features_are_all_zero_stays_active(self) -> None:
        case = Case("zero features", is_blank=True)
        dense, _ = self.build_case(case, torch.float64)
        with torch.no_grad():
            dense.stem[0].bias.zero_()  # a blank image's cells are exactly zero after the stem
            dense.stem[1].bias.zero_()
        encoder = self.build(dense, patch_size=32, grn_scope="image")
        images, visible = case.inputs()
        features = encoder(images, visible)
        assert_relative(features, naive.encode(dense, images, visible, 32), 1e-10)
        assert features[0].abs().sum(dim=-1).gt(0).all()

    def test_a_dead_channel_has_finite_gradients(self) -> None:
        case = Case("dead channel")
        dense, _ = self.build_case(case, torch.float64)
        with torch.no_grad():
            fc1 = dense.stages[0].blocks[0].mlp.fc1
            fc1.weight[4] = 0
            fc1.bias[4] = 0  # GELU(0) = 0 at every site, so the channel's response is 0
        encoder = self.build(dense, patch_size=32, grn_scope="image")
        images, visible = case.inputs()
        encoder(images.requires_grad_(), visible).square().sum().backward()
        assert images.grad.isfinite().all()
        for gradient in self.dense_gradients(encoder, dense).values():
            assert gradient.isfinite().all()

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("conv_mlp", [False, True])
    def test_fully_visible_equals_the_dense_model(self, version: int, conv_mlp: bool) -> None:
        case = Case("fully visible", version=version, conv_mlp=conv_mlp, visible=6)
        dense, encoder = self.build_case(case, torch.float64)
        images, visible = case.inputs()
        features = encoder(images, visible)
        assert_relative(as_map(features, case.grid), dense.forward_features(images), 1e-10)


def fresh_copy(dense: ConvNeXt, dtype: torch.dtype) -> ConvNeXt:
    """Copy the model in another dtype, without gradients."""
    copied = copy.deepcopy(dense).to(dtype)
    copied.zero_grad(set_to_none=True)
    return copied


def paint_hidden(images: Tensor, visible: Tensor, case: Case, pixel: float) -> Tensor:
    """Return images with every pixel of every hidden patch replaced."""
    everywhere = set(range(case.grid[0] * case.grid[1]))
    hidden = [sorted(everywhere - set(patches)) for patches in visible.tolist()]
    return paint_patches(images, hidden, case.patch_size, pixel)


def paint_patches(
    images: Tensor, patches: list[list[int]], patch_size: int, pixel: float
) -> Tensor:
    """Return images with every pixel of the listed patches of each image replaced."""
    painted, columns = images.clone(), images.shape[3] // patch_size
    for n, indices in enumerate(patches):
        for patch in indices:
            top, left = patch // columns * patch_size, patch % columns * patch_size
            painted[n, :, top : top + patch_size, left : left + patch_size] = pixel
    return painted


def as_map(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arrange the features of all patches, in order, as [N, D, H, W]."""
    rows = features.unflatten(1, grid).permute(0, 5, 1, 3, 2, 4)
    return rows.flatten(4).flatten(2, 3)
