"""Writes a segmenter for others: smp's folder, and ONNX for pictures of any size."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcmae.errors import ConfigError
from fcmae.model.segmenter import SIDE_PX, import_smp
from fcmae.runs.durable import disk_errors, write_files
from fcmae.runs.folder import RunFolder
from fcmae.weights.export_onnx import write_graph
from fcmae.weights.files import load_state_dict_file
from fcmae.weights.formats import FILE_NAMES, ONNX, SMP
from fcmae.weights.proof import largest_difference
from fcmae.weights.segmenter import SegmenterInfo, load_segmenter

# An encoder and a decoder: twice the layers of what 1e-5 is for.
TOLERANCE = 5e-5
# Replaces smp's batch norm as `build_segmenter` does, in the card of a segmenter with group norm.
_GROUP_NORM = """
import math

from torch import nn

for module in list(network.modules()):  # its norm is of groups, which smp does not offer
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = math.gcd(32, channels, max(1, channels // 8))
            setattr(module, name, nn.GroupNorm(groups, channels))
"""


def convert_segmenter(source: Path | str, target: Path | str | None, to: str) -> list[str]:
    """Write a trained segmenter in another format; return what to tell the user.

    Args:
        source: a run or a file that `segmenter_file` knows.
        target: file or folder; None for a name of its own in the run's export folder, or beside
            the file.
        to: onnx or smp.

    Raises:
        ConfigError: another format, or smp is missing.
        CheckpointError: unreadable weights, or a result that is not the same model.
        BackendUnavailableError: onnx is needed and not installed.
        OSError: it cannot be written.
    """
    if to not in (ONNX, SMP):
        raise ConfigError(
            f"--to: got {to!r} for {source}, which is a segmenter; expected {SMP} or {ONNX}. The "
            "encoder alone is in the run that it started from."
        )
    network, info = load_segmenter(source)
    place = Path(source)
    if target is not None:
        path = Path(target)
    elif place.is_dir():
        path = RunFolder(place).export / f"segmenter{FILE_NAMES[to]}"
    else:
        path = place.with_name(f"{place.stem}{FILE_NAMES[to]}")
    told = [
        f"{source}: {info.architecture} over {info.model_name}, {len(info.classes or ())} classes."
    ]
    if to == ONNX:
        return [*told, export_segmenter_onnx(network, path, info)]
    return [*told, export_smp(network, path, info), f"{path / 'README.md'}: how to load it."]


class AnySize(nn.Module):
    """A segmenter for images of any height and width: padded below and to the right, and cut.

    What pads is 0 after normalisation, as in `fcmae predict`. Adaptive pooling, whose windows
    depend on the size, is spelt out, since ONNX has none.

    Args:
        network: on the CPU; copied.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        copied: Any = copy.deepcopy(network).float()
        copied.requires_divisible_input_shape = False  # the padding sees to it
        self.network: nn.Module = copied
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                    assert isinstance(child.output_size, int)
                    setattr(module, name, _AdaptivePool(child.output_size))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Return ([N, classes, H, W],) of images [N, C, H, W]."""
        height, width = images.shape[-2:]
        below, right = (
            (side + SIDE_PX - 1) // SIDE_PX * SIDE_PX - side for side in (height, width)
        )
        logits = self.network(F.pad(images, (0, right, 0, below)))
        return (logits[:, :, :height, :width],)


class _AdaptivePool(nn.Module):
    """AdaptiveAvgPool2d as two matrix products, whose matrices are made from the size."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, feature_map: Tensor) -> Tensor:
        height, width = feature_map.shape[-2:]
        rows, columns = (self._windows(side, feature_map) for side in (height, width))
        return rows @ feature_map @ columns.transpose(0, 1)

    def _windows(self, side: int, like: Tensor) -> Tensor:
        """Return [cells, side]: the share that each place has in the mean of each cell."""
        place = torch.arange(side, device=like.device)[None]
        cell = torch.arange(self.cells, device=like.device)[:, None]
        first, end = cell * side // self.cells, ((cell + 1) * side + self.cells - 1) // self.cells
        inside = ((place >= first) & (place < end)).to(like.dtype)
        return inside / inside.sum(dim=1, keepdim=True)


def export_segmenter_onnx(network: nn.Module, path: Path, info: SegmenterInfo) -> str:
    """Write a segmenter as ONNX for any number and size of images; return a sentence on it.

    The input `images` is [batch, channels, height, width] in float32, normalised as the metadata
    say, height and width above 32 px; the output `logits` [batch, classes, height, width].

    Args:
        network: on the CPU, in evaluation mode; not changed.
        path: the file; replaced when ONNX Runtime has computed the same.
        info: of the segmenter; its texts are kept with the graph.

    Raises:
        BackendUnavailableError: onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: ONNX Runtime computes something else; nothing is written then.
    """
    height, width = info.image_size
    return write_graph(
        AnySize(network).eval(),
        ["logits"],
        path,
        info.in_chans,
        (2, 3 * SIDE_PX + 7, 2 * SIDE_PX + 5),
        [(1, height, width), (2, 2 * SIDE_PX, 3 * SIDE_PX + 1), (3, 4 * SIDE_PX - 3, 2 * SIDE_PX)],
        info.to_metadata(),
        TOLERANCE,
    )


def export_smp(network: nn.Module, folder: Path, info: SegmenterInfo) -> str:
    """Write smp's own folder (config.json, model.safetensors) with a card; return a sentence on it.

    `smp.from_pretrained` loads it where the norm is smp's own; README.md has the lines for either.

    Args:
        network: of `SegmenterInfo.create_segmenter`, on the CPU, in evaluation mode; not changed.
        folder: created; other files in it are left alone.
        info: of the segmenter.

    Raises:
        CheckpointError: what was written computes something else; nothing is written then.
        OSError: the folder cannot be written.
    """
    smp = import_smp()
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, info.in_chans, 2 * SIDE_PX, 3 * SIDE_PX, generator=rng)

    def write(partial: Path) -> float:
        network.save_pretrained(partial)  # type: ignore[operator]
        if info.norm == "batch":
            loaded = smp.from_pretrained(str(partial))
        else:
            loaded = info.create_segmenter()
            loaded.load_state_dict(load_state_dict_file(partial / "model.safetensors"))
        with torch.no_grad():
            gap = largest_difference(
                {"logits": network(images)},
                {"logits": loaded.eval()(images)},
                *("smp's folder", "the segmenter"),
            )
        (partial / "README.md").write_text(_card(info, folder), encoding="utf-8")
        return gap

    with disk_errors(folder):
        gap = write_files(folder, write)
    return (
        f"{folder}: config.json and model.safetensors of segmentation_models_pytorch written and "
        f"loaded back; the largest difference on 2 random images is {gap:.1e} of the largest value."
    )


def _card(info: SegmenterInfo, folder: Path) -> str:
    facts = json.dumps(
        {
            "classes": info.classes,
            "mean": info.mean,
            "std": info.std,
            "image_size": info.image_size,
            "value_range": info.value_range,
            "bands": info.bands,
        },
        indent=2,
    )
    lines = ["import segmentation_models_pytorch as smp"]
    if info.norm == "batch":
        lines += ["", f'network = smp.from_pretrained("{folder}").eval()']
        code = "\n".join(lines) + "\n"
    else:
        code = (
            "import json\nfrom pathlib import Path\n\n"
            + "\n".join(lines)
            + "\nfrom safetensors.torch import load_file\n\n"
            f'folder = "{folder}"\n'
            'settings = json.loads(Path(folder, "config.json").read_text())\n'
            'kind = getattr(smp, settings.pop("_model_class"))\n'
            'network = kind(**{**settings, "encoder_weights": None})\n'
            f"{_GROUP_NORM}"
            'network.load_state_dict(load_file(f"{folder}/model.safetensors"))\n'
            "network.eval()\n"
        )
    origin = f"\nOrigin of the start weights: {info.origin}\n" if info.origin else ""
    return (
        f"# A segmenter: {info.architecture} over {info.model_name}\n\n"
        f"Trained with the FCMAE toolkit for {info.steps} steps. Images are values in 0..1 less "
        "`mean`, divided by `std`; height and width are multiples of "
        f"{SIDE_PX} px; the output has a channel per class.\n{origin}\n"
        f"```json\n{facts}\n```\n\n```python\n{code}```\n"
    )
