"""A trained segmenter as one safetensors file that says how it is built and fed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from fcmae.errors import CheckpointError
from fcmae.model.segmenter import Architecture, Norm, build_segmenter
from fcmae.randomness import seeded
from fcmae.runs.durable import write_atomically
from fcmae.runs.folder import RunFolder
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.files import load_state_dict_file, read_metadata

BEST_FILE, LAST_FILE = "segmenter.safetensors", "segmenter_last.safetensors"
TASK = "segmentation"


@dataclass(frozen=True, kw_only=True)
class SegmenterInfo(EncoderInfo):
    """How a segmenter is built, fed and where it comes from; model_name is its encoder's.

    Attributes:
        architecture: of the decoder.
        decoder_channels: its width.
        norm: its normalisation.
        mask_values: what stands for each class in the masks of the training: a number, or a
            colour of three; in the order of `classes`.
        tile_size: (height, width) of the tiles in which the run scored whole pictures, px; None:
            image_size.
        tile_overlap: share of a tile that overlaps the next one.
    """

    task: str = TASK
    architecture: Architecture = "upernet"
    decoder_channels: int = 256
    norm: Norm = "group"
    mask_values: tuple[Any, ...] = ()
    tile_size: tuple[int, int] | None = None
    tile_overlap: float = 0.25

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> SegmenterInfo | None:
        """Return what `to_metadata` wrote, JSON values decoded; None for any other file."""
        if metadata.get("task") != TASK:
            return None
        found = super().from_metadata(metadata)
        if not isinstance(found, cls):
            return None
        values = (tuple(v) if isinstance(v, list) else v for v in found.mask_values)
        return dataclasses.replace(found, mask_values=tuple(values))

    def create_segmenter(self, drop_path: float = 0.0) -> nn.Module:
        """Return a network that the weights fit, leaving the global generator alone."""
        with seeded(0):
            return build_segmenter(
                self.architecture,
                self.model_name,
                in_chans=self.in_chans,
                num_classes=len(self.classes or ()),
                decoder_channels=self.decoder_channels,
                norm=self.norm,
                drop_path=drop_path,
            )


def save_segmenter(
    weights: Mapping[str, Tensor],
    path: Path,
    info: SegmenterInfo,
    scores: Mapping[str, str] | None = None,
) -> None:
    """Write weights with metadata: those of `info`, and texts of `scores`; replaced as a whole.

    The names of the weights are smp's.

    Raises:
        OSError: the file cannot be written.
    """
    metadata = {**info.to_metadata(), **(scores or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = dict(weights)
    write_atomically(path, lambda partial: save_file(plain, partial, metadata=metadata))


def segmenter_file(source: Path | str) -> Path | None:
    """Return the file of a segmenter that a file or the folder of a run stands for, or None."""
    path = Path(source)
    if path.is_dir():
        places = (RunFolder(path).export / BEST_FILE, path / BEST_FILE)
        path = next((file for file in places if file.is_file()), path)
    is_one = path.is_file() and read_metadata(path).get("task") == TASK
    return path if is_one else None


def load_segmenter(source: Path | str) -> tuple[nn.Module, SegmenterInfo]:
    """Return a trained segmenter on the CPU, in evaluation mode, and how to feed it.

    Args:
        source: a file of `save_segmenter`, or the folder of a run that has one.

    Raises:
        CheckpointError: no such file, or one that is damaged or incomplete.
        ConfigError: smp is missing.
    """
    file = segmenter_file(source)
    info = None if file is None else SegmenterInfo.from_metadata(read_metadata(file))
    if file is None or info is None:
        raise CheckpointError(
            f"{source}: holds no segmenter; name the folder of a run with task: segmentation that "
            f"has been evaluated, or its export/{BEST_FILE}."
        )
    network = info.create_segmenter()
    try:
        network.load_state_dict(load_state_dict_file(file))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{file}: does not fit what it says of itself ({reason}).") from error
    return network.eval(), info
