"""Runs scripts of examples/ on small runs, as `python examples/NAME.py ...` would."""

import dataclasses
import gc
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.convnext import ConvNeXt

from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
INFO = EncoderInfo(
    model_name="convnextv2_atto",
    in_chans=3,
    stem_stride=4,
    image_size=(64, 96),
    mean=(0.5,),
    std=(0.2,),
    patch_size=32,
    mask_ratio=0.6,
    steps=7,
)


def exported_folder(folder: Path, in_chans: int) -> ConvNeXt:
    """Write the folder of an encoder whose weights are random, and return the encoder."""
    info = dataclasses.replace(
        INFO,
        in_chans=in_chans,
        mean=tuple(0.3 + 0.01 * channel for channel in range(in_chans)),
        std=tuple(0.2 + 0.01 * channel for channel in range(in_chans)),
    )
    encoder = info.create_model()
    rng = torch.Generator().manual_seed(in_chans)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.02)
    export(encoder, "timm-folder", folder, info)
    return encoder.eval()


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> dict[str, Any]:
    """Run a script and return its global names."""
    gc.collect()  # networks of the script before, which refer to themselves
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # what other libraries say to their own developers
        torch.manual_seed(0)
        return runpy.run_path(str(EXAMPLES / name))
