"""The minkowski backend: MinkowskiEngine layers under the authors' parameter names and shapes.

The only file that imports MinkowskiEngine (ME), and not before a model is built with it. Its
convolutions know float32 and float64 only, so the backend runs outside autocast.
"""

# N images, K visible patches per image, m patch side in cells of the stage at hand, C channels,
# M = N * K * m * m active sites: ME keeps features [M, C] and coordinates [M, 3] in its own order

from __future__ import annotations

import collections
import collections.abc
import copy
import functools
import math
import os
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from sparse import BackendUnavailableError
from sparse.backends.authors_layout import timm_name, to_authors_layout, to_timm_layout
from sparse.sites import VisiblePatches

ADVICE = (
    "Run `fcmae install-minkowski`, or use model.backend=native, which computes the same numbers "
    "without it."
)


@functools.cache  # remembers success only: a failed import is tried again
def load_minkowski_engine() -> ModuleType:
    """Import MinkowskiEngine.

    Raises:
        BackendUnavailableError: it is not installed, or it is and cannot be imported.
    """
    for name in ("Sequence", "Mapping", "Iterable"):  # Python 3.10 removed them; ME 0.5.4 asks
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    threads = os.environ.get("OMP_NUM_THREADS")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a CPU build, and advice on threads
            import MinkowskiEngine
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "MinkowskiEngine":
            message = f"model.backend=minkowski: MinkowskiEngine is not installed. {ADVICE}"
            raise BackendUnavailableError(message) from error
        raise _broken(f"{type(error).__name__}: {error}") from error
    finally:
        if threads is None:  # ME sets it to 16 on large machines, for child processes too
            os.environ.pop("OMP_NUM_THREADS", None)
    for name in ("SparseTensor", "MinkowskiConvolution", "MinkowskiLinear"):
        if not hasattr(MinkowskiEngine, name):  # a folder of that name, say a clone's
            raise _broken(f"{MinkowskiEngine!r} has no {name}")
    return MinkowskiEngine


def _broken(reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"model.backend=minkowski: MinkowskiEngine is present but broken ({reason}). {ADVICE}"
    )


def encode(
    module: MinkowskiConvNeXt,
    dense: ConvNeXt,
    images: Tensor,
    patches: VisiblePatches,
    *,
    grn_over_batch: bool,
) -> Tensor:
    """Run `module` with the parameters of `dense`, which gets the gradients: -> [N, K, m, m, D].

    So whatever trains, copies, saves or exports the dense model needs to know nothing of ME.
    """
    stages: Any = dense.stages
    is_checkpointing = any(stage.grad_checkpointing for stage in stages)
    weights = module.weights_of(dense)
    arguments = (images, patches, grn_over_batch, is_checkpointing)
    return functional_call(module.train(dense.training), weights, arguments)


class MinkowskiConvNeXt(nn.Module):
    """A ConvNeXt of MinkowskiEngine layers, whose state dict is the authors' sparse encoder.

    ME's own layers break when copied or pickled. This module is rebuilt from its state dict
    instead, so deepcopy, EMA and pickling work on it.
    """

    def __init__(self, dense: ConvNeXt) -> None:
        """Build the twin of a supported timm ConvNeXt, with a copy of its weights.

        A model on the meta device gives a twin without weights, for `encode`.

        Raises:
            BackendUnavailableError: MinkowskiEngine cannot be imported.
        """
        super().__init__()
        self._skeleton = (without_storage(dense),)  # in a tuple, so that it is no submodule
        with torch.random.fork_rng(devices=[]):  # the layers draw weights that nobody uses
            self._build(dense)
        weight = next(dense.parameters())
        self.to(weight.device, weight.dtype)
        if not weight.is_meta:
            self.load_state_dict(self.weights_of(dense))

    def _build(self, dense: Any) -> None:
        stem, norm = dense.stem
        shape = stem.in_channels, stem.out_channels, stem.kernel_size, stem.stride
        layers: list[nn.Module] = [
            nn.Conv2d(*shape, bias=stem.bias is not None),
            nn.LayerNorm(stem.out_channels, norm.eps),
        ]
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        for stage in dense.stages:
            if not isinstance(stage.downsample, nn.Identity):
                layers += [_Norm(stage.downsample[0]), _downsampling(stage.downsample[1])]
            self.downsample_layers.append(nn.Sequential(*layers))
            self.stages.append(nn.ModuleList(_Block(block) for block in stage.blocks))
            layers = []
        norm = dense.norm_pre
        self.norm_pre = norm if isinstance(norm, nn.Identity) else _Norm(norm)

    def forward(
        self,
        images: Tensor,
        patches: VisiblePatches,
        grn_over_batch: bool,
        is_checkpointing: bool = False,
    ) -> Tensor:
        """Encode visible patches: images [N, C, H, W] -> [N, K, m, m, D], float32 or float64.

        Sites come from `patches`, never from feature values; hidden pixels are not read.
        `is_checkpointing` recomputes the blocks in the backward pass to save memory.

        Raises:
            ValueError: the weights are in half precision.
        """
        stem: Any = self.downsample_layers[0]
        stages: Any = self.stages
        dtype = stem[0].weight.dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"model.backend=minkowski: the weights are {dtype}, expected torch.float32 or "
                "torch.float64, all that MinkowskiEngine computes; autocast around them is fine."
            )
        with torch.autocast(images.device.type, enabled=False):
            x = self._embed(images.to(dtype), patches)
            downsample_layers = [stem[2:], *self.downsample_layers[1:]]
            for downsample, blocks in zip(downsample_layers, stages, strict=True):
                x = downsample(x)
                rows = _Rows(x.C[:, 0].long(), patches.num_images, grn_over_batch)
                for block in blocks:
                    if is_checkpointing and x.F.requires_grad:
                        # By then functional_call has put other weights in place of today's.
                        weights = dict(block.named_parameters())
                        run = functools.partial(functional_call, block, weights)
                        x = checkpoint(run, (x, rows), use_reentrant=False)
                    else:
                        x = block(x, rows)
            return _read_patches(self.norm_pre(x), patches)

    def weights_of(self, dense: ConvNeXt) -> dict[str, Tensor]:
        """Return the weights of `dense` under this module's names and shapes.

        Gradients flow through them to the parameters of `dense`.
        """
        weights = dict(dense.named_parameters())
        return {
            name: to_authors_layout(weights[timm_name(name)], own.shape, name)
            for name, own in self.named_parameters()
        }

    @torch.no_grad()
    def write_to_dense(self, dense: ConvNeXt) -> None:
        """Copy this module's weights into the timm model it was built from, or a twin of that."""
        weights = dict(dense.named_parameters())
        for name, own in self.named_parameters():
            target = weights[timm_name(name)]
            target.copy_(to_timm_layout(own, target.shape, name))

    def _embed(self, images: Tensor, patches: VisiblePatches) -> Any:
        """Run the stem on visible pixels and place the cells: -> SparseTensor of [M, C]."""
        stem: Any = self.downsample_layers[0]
        pixels = patches.gather(images.permute(0, 2, 3, 1)).flatten(0, 1)  # [N * K, P, P, C]
        cells = stem[0](pixels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [N * K, m, m, C]
        offset = torch.arange(cells.shape[1], device=images.device)
        y = patches.row[..., None, None] * len(offset) + offset[:, None]  # [N, K, m, 1]
        x = patches.column[..., None, None] * len(offset) + offset  # [N, K, 1, m]
        coordinates = torch.broadcast_tensors(patches.image[..., None, None], y, x)
        return load_minkowski_engine().SparseTensor(
            stem[1](cells.flatten(0, 2)),
            coordinates=torch.stack(coordinates, dim=-1).flatten(0, 3).int().contiguous(),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (*self._skeleton, dict(self.state_dict()), self.training)


def without_storage(dense: Any) -> ConvNeXt:
    """Copy a model onto the meta device without copying its weights first."""
    memo = {id(weight): nn.Parameter(weight.detach().to("meta")) for weight in dense.parameters()}
    twin: ConvNeXt = copy.deepcopy(dense, memo)
    return twin


def _rebuild(skeleton: ConvNeXt, state: dict[str, Tensor], is_training: bool) -> MinkowskiConvNeXt:
    module = MinkowskiConvNeXt(skeleton).train(is_training)
    module.load_state_dict(state, assign=True)
    return module


@dataclass(frozen=True)
class _Rows:
    """What the blocks of a stage need to know of their rows.

    Attributes:
        image: [M], index of the image that each row belongs to.
        num_images: N.
        pool_together: whether GRN pools over all rows rather than over those of one image.
    """

    image: Tensor
    num_images: int
    pool_together: bool


class _Norm(nn.Module):
    """LayerNorm of each row, named as the authors name it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.ln = nn.LayerNorm(norm.normalized_shape, norm.eps)

    def forward(self, x: Any) -> Any:
        return _with_features(x, self.ln(x.F))


class _Grn(nn.Module):
    """Global response normalisation of the rows of one image, or of the whole batch.

    Deviation: the authors' layer always pools over the batch. Held by
    test_output_does_not_depend_on_batch_mates.
    """

    def __init__(self, grn: Any) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, len(grn.weight)))
        self.beta = nn.Parameter(torch.zeros(1, len(grn.bias)))
        self.eps = grn.eps

    def forward(self, x: Any, rows: _Rows) -> Any:
        features = x.F
        pool = torch.zeros_like(rows.image) if rows.pool_together else rows.image
        energy = features.new_zeros(rows.num_images, features.shape[1])
        energy = energy.index_add(0, pool, features.square())
        # d sqrt(x)/dx is infinite at 0, which would make a dead channel NaN
        response = energy.clamp_min(torch.finfo(energy.dtype).tiny).sqrt()
        ratio = response / (response.mean(dim=1, keepdim=True) + self.eps)
        return _with_features(x, features + self.beta + self.gamma * features * ratio[pool])


class _Block(nn.Module):
    """A ConvNeXt block on rows, V1 or V2 as the timm block it is built from."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        engine = load_minkowski_engine()
        # The authors' fork adds a depthwise layer with the same parameters.
        convolution = getattr(
            engine, "MinkowskiDepthwiseConvolution", engine.MinkowskiChannelwiseConvolution
        )
        depthwise, hidden = block.conv_dw, block.mlp.fc1
        dim, width = depthwise.out_channels, hidden.weight.shape[0]
        self.dwconv = convolution(
            dim,
            kernel_size=depthwise.kernel_size[0],
            bias=depthwise.bias is not None,
            dimension=2,
        )
        self.norm = _Norm(block.norm)
        self.pwconv1 = engine.MinkowskiLinear(dim, width, bias=hidden.bias is not None)
        self.act = copy.deepcopy(block.mlp.act)
        self.grn = _Grn(block.mlp.grn) if hasattr(block.mlp, "grn") else None
        self.pwconv2 = engine.MinkowskiLinear(width, dim, bias=block.mlp.fc2.bias is not None)
        self.gamma = None if block.gamma is None else nn.Parameter(torch.ones(dim))
        self.drop_path = copy.deepcopy(block.drop_path)

    def forward(self, x: Any, rows: _Rows) -> Any:
        branch = self.pwconv1(self.norm(self.dwconv(x)))
        branch = _with_features(branch, self.act(branch.F))
        if self.grn is not None:
            branch = self.grn(branch, rows)
        features = self.pwconv2(branch).F
        if self.gamma is not None:
            features = features * self.gamma
        if not isinstance(self.drop_path, nn.Identity):  # one decision per image
            kept = self.drop_path(features.new_ones(rows.num_images, 1))
            features = features * kept[rows.image]
        return _with_features(x, x.F + features)


def _downsampling(convolution: nn.Conv2d) -> nn.Module:
    return load_minkowski_engine().MinkowskiConvolution(
        convolution.in_channels,
        convolution.out_channels,
        kernel_size=convolution.kernel_size[0],
        stride=convolution.stride[0],
        bias=convolution.bias is not None,
        dimension=2,
    )


def _with_features(x: Any, features: Tensor) -> Any:
    return load_minkowski_engine().SparseTensor(
        features, coordinate_map_key=x.coordinate_map_key, coordinate_manager=x.coordinate_manager
    )


def _read_patches(x: Any, patches: VisiblePatches) -> Tensor:
    """Look the visible cells up by their coordinates: SparseTensor -> [N, K, m, m, D].

    A strided convolution leaves rows in no order, and ME's dense() would guess the shape.
    """
    image, row, column = x.C.long().unbind(dim=1)
    stride = x.tensor_stride[0]  # in cells of the stem
    side = math.isqrt(len(image) // patches.row.numel())
    shape = (patches.num_images, patches.rows * side, patches.columns * side, 1)
    place = image.new_zeros(shape)
    place[image, row // stride, column // stride, 0] = torch.arange(len(image), device=image.device)
    return x.F[patches.gather(place).squeeze(-1)]
