"""Weights in the authors' names, made by loops from the description of their layout.

Shares nothing with the converter: every name and every place of a kernel is spelt here.
"""

from __future__ import annotations

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor

State = dict[str, Tensor]


def narrow(
    *, version: int = 2, num_classes: int = 0, seed: int = 5, **settings: object
) -> ConvNeXt:
    """A ConvNeXt of four stages whose sizes differ pairwise, every parameter random, float32."""
    arguments: dict[str, object] = {
        "in_chans": 2,
        "num_classes": num_classes,
        "dims": (3, 5, 6, 8),
        "depths": (1, 2, 1, 1),
        "use_grn": version == 2,
        "ls_init_value": None if version == 2 else 1.0,
    }
    return randomized(ConvNeXt(**(arguments | settings)), seed)


def randomized(model: torch.nn.Module, seed: int = 5) -> torch.nn.Module:
    """Redraw every parameter: matrices keep the scale of features, vectors are of any sign."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            is_scale = name.endswith(("norm.weight", "stem.1.weight", "downsample.0.weight"))
            parameter.copy_(noise / fan_in**0.5 + float(is_scale))
    return model.eval()


def sparse_kernel(weight: Tensor) -> Tensor:
    """Lay a dense kernel [out, in, i, j] out as MinkowskiEngine does, the row fastest."""
    outputs, inputs, side, _ = weight.shape
    kernel = torch.empty(side * side, inputs, outputs)
    for i in range(side):
        for j in range(side):
            kernel[i + side * j] = weight[:, :, i, j].T
    return kernel


def sparse_encoder(model: ConvNeXt, prefix: str = "") -> State:
    """The authors' sparse encoder with the weights of a timm model."""
    w = model.state_dict()
    state = {
        "downsample_layers.0.0.weight": w["stem.0.weight"],
        "downsample_layers.0.0.bias": w["stem.0.bias"],
        "downsample_layers.0.1.weight": w["stem.1.weight"],
        "downsample_layers.0.1.bias": w["stem.1.bias"],
    }
    for s, stage in enumerate(model.stages):
        if s > 0:
            there = f"stages.{s}.downsample"
            state[f"downsample_layers.{s}.0.ln.weight"] = w[f"{there}.0.weight"]
            state[f"downsample_layers.{s}.0.ln.bias"] = w[f"{there}.0.bias"]
            state[f"downsample_layers.{s}.1.kernel"] = sparse_kernel(w[f"{there}.1.weight"])
            state[f"downsample_layers.{s}.1.bias"] = w[f"{there}.1.bias"].view(1, -1)
        for b in range(len(stage.blocks)):
            here, there = f"stages.{s}.{b}", f"stages.{s}.blocks.{b}"
            depthwise = sparse_kernel(w[f"{there}.conv_dw.weight"])[:, 0]
            state[f"{here}.dwconv.kernel"] = depthwise
            state[f"{here}.dwconv.bias"] = w[f"{there}.conv_dw.bias"].view(1, -1)
            state[f"{here}.norm.ln.weight"] = w[f"{there}.norm.weight"]
            state[f"{here}.norm.ln.bias"] = w[f"{there}.norm.bias"]
            for number in (1, 2):
                linear = f"{here}.pwconv{number}.linear"
                state[f"{linear}.weight"] = w[f"{there}.mlp.fc{number}.weight"].flatten(1)
                state[f"{linear}.bias"] = w[f"{there}.mlp.fc{number}.bias"]
            if f"{there}.mlp.grn.weight" in w:
                state[f"{here}.grn.gamma"] = w[f"{there}.mlp.grn.weight"].view(1, -1)
                state[f"{here}.grn.beta"] = w[f"{there}.mlp.grn.bias"].view(1, -1)
            if f"{there}.gamma" in w:
                state[f"{here}.gamma"] = w[f"{there}.gamma"]
    return {prefix + name: tensor.clone() for name, tensor in state.items()}


def dense_encoder(model: ConvNeXt, grn_shape: tuple[int, ...] = (1, 1, 1, -1)) -> State:
    """The authors' dense encoder without norm and head, as the released `*_fcmae.pt` are."""
    dense = {}
    w = model.state_dict()
    for name, tensor in sparse_encoder(model).items():
        if name.endswith((".dwconv.kernel", ".1.kernel")):
            s = name.split(".")[1]
            if "dwconv" in name:
                tensor = w[f"stages.{s}.blocks.{name.split('.')[2]}.conv_dw.weight"]
            else:
                tensor = w[f"stages.{s}.downsample.1.weight"]
            name = name.replace(".kernel", ".weight")
        elif name.endswith((".dwconv.bias", ".1.bias")):
            tensor = tensor.flatten()
        elif ".grn." in name:
            tensor = tensor.reshape(grn_shape)
        dense[name.replace(".ln.", ".").replace(".linear.", ".")] = tensor.clone()
    return dense


def sparse_fcmae(model: ConvNeXt, dim: int = 4, outputs: int = 7, seed: int = 9) -> State:
    """The authors' whole training checkpoint: sparse encoder and a random decoder of one block."""
    rng = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    return sparse_encoder(model, "encoder.") | {
        "mask_token": noise(1, dim, 1, 1),
        "proj.weight": noise(dim, model.num_features, 1, 1),
        "proj.bias": noise(dim),
        "decoder.0.dwconv.weight": noise(dim, 1, 7, 7),
        "decoder.0.dwconv.bias": noise(dim),
        "decoder.0.norm.weight": noise(dim),
        "decoder.0.norm.bias": noise(dim),
        "decoder.0.pwconv1.weight": noise(4 * dim, dim),
        "decoder.0.pwconv1.bias": noise(4 * dim),
        "decoder.0.grn.gamma": noise(1, 1, 1, 4 * dim),
        "decoder.0.grn.beta": noise(1, 1, 1, 4 * dim),
        "decoder.0.pwconv2.weight": noise(dim, 4 * dim),
        "decoder.0.pwconv2.bias": noise(dim),
        "pred.weight": noise(outputs, dim, 1, 1),
        "pred.bias": noise(outputs),
    }


def assert_same_state(found: State, expected: State) -> None:
    """Assert the same names, shapes, types and bits."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape, name
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
