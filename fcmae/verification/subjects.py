"""`fcmae verify`: proves on the user's own model that what runs is sparse FCMAE."""

import dataclasses
import math
from pathlib import Path

import torch
from torch import nn

from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.model.masking import draw_visible
from fcmae.model.precision import multiplying
from fcmae.model.structure import with_structure
from fcmae.runs.loading import load_run
from fcmae.runs.terminal import progress_bar
from fcmae.settings.pretrain import PretrainConfig
from fcmae.verification.certificate import Certificate
from fcmae.verification.claims import Case, measure
from fcmae.weights.encoder_info import EncoderInfo
from sparse.encoder import GrnScope
from sparse.ops import depthwise_triton

NUM_IMAGES = 2
CPU = torch.device("cpu")


def verify_config(config: PretrainConfig, device: torch.device = CPU) -> Certificate:
    """Verify on a device the model that a config describes, with every weight random.

    Raises:
        ConfigError: settings that do not fit each other.
        UnsupportedModelError: the encoder cannot run sparsely.
    """
    config = with_structure(config)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, backend="native", checkpoint_activations=False),
    )
    model = create_model(config)
    randomize(model, only_grn=False)
    info = EncoderInfo.of_run(config, model, 0)
    return verify_model(model, info, config.model.grn_scope, "random everywhere", device)


def verify_run(
    run_dir: str | Path, grn_scope: GrnScope | None = None, device: torch.device = CPU
) -> Certificate:
    """Verify on a device the model of a run with its trained weights, GRN's redrawn at random.

    Raises:
        ConfigError, CheckpointError, BackendUnavailableError: as `load_run`.
    """
    config, model, step = load_run(run_dir, as_it_ran=True)
    randomize(model, only_grn=True)
    info = EncoderInfo.of_run(config, model, step)
    weights = f"of {run_dir} after {step} steps, GRN's redrawn at random"
    return verify_model(model, info, grn_scope or config.model.grn_scope, weights, device)


def verify_model(
    model: FCMAE,
    info: EncoderInfo,
    grn_scope: GrnScope,
    weights: str,
    device: torch.device = CPU,
) -> Certificate:
    """Verify a model on random images and masks.

    Args:
        model: on the CPU; put into evaluation mode, its GRN scope set.
        info: of its encoder.
        grn_scope: `image` or `batch`.
        weights: where they come from, in words, for the table.
        device: where it runs; the reference that it is held against computes on the CPU.
    """
    model.float().eval()
    model.sparse_encoder.grn_scope = grn_scope
    rng = torch.Generator().manual_seed(0)
    shape = (NUM_IMAGES, model.in_chans, *model.image_size)
    images = torch.randn(shape, generator=rng, dtype=torch.float64)
    visible = draw_visible(NUM_IMAGES, model.num_patches, model.mask_ratio, rng)
    hidden = model.num_patches - visible.shape[1]
    height, width = model.image_size
    subject = {
        "model": f"{info.model_name}, {model.in_chans} channels, {height} x {width} px, "
        f"patches of {model.patch_size} px",
        "hidden": f"{hidden} of {model.num_patches} patches ({hidden / model.num_patches:.1%})",
        "GRN": "over one image" if grn_scope == "image" else "over the batch (released code)",
        "weights": weights,
        "measured": f"on {NUM_IMAGES} random images; differences as shares of the largest value",
    }
    if device.type == "cuda":
        path = "Triton kernels" if depthwise_triton.is_available(images) else "canvas"
        subject["device"] = f"{torch.cuda.get_device_name(device)}, depthwise layers by {path}"
    with multiplying("fp32"):
        case = Case(model, info, grn_scope, images, visible, device)
        bar = progress_bar(measure(case), unit="claim", title="verifying", is_brief=True)
        lines = list(bar)
    return Certificate(subject, lines)


@torch.no_grad()
def randomize(model: FCMAE, *, only_grn: bool) -> None:
    """Redraw weights from a fixed seed: of GRN alone, or of the whole model.

    At the start GRN is the identity, biases are 0 and layer scales nearly 0, which hides mistakes.
    """
    rng = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        if ".grn." in name:
            parameter.copy_(0.5 * noise)
        elif only_grn or name.startswith("encoder.head."):  # no part of FCMAE
            continue
        elif parameter.dim() > 1:
            parameter.copy_(noise / math.sqrt(parameter[0].numel()))
        else:
            is_scale = name.endswith(".gamma") or _is_norm_weight(model, name)
            parameter.copy_(0.3 * noise + float(is_scale))


def _is_norm_weight(model: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(model.get_submodule(owner), nn.LayerNorm)
