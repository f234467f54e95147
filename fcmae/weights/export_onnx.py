"""Writes an encoder or a classifier as ONNX and compares it with ONNX Runtime's results."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fcmae.errors import BackendUnavailableError
from fcmae.runs.durable import write_files
from fcmae.runs.terminal import progress_bar
from fcmae.weights.proof import largest_difference

Shape: TypeAlias = tuple[int, int, int]  # batch, height, width
OPSET = 18
CELLS = 7  # on a side of the last feature map, where nobody says the size of the images
# Protocol buffers end at 2 GiB: weights of a larger model lie in a file beside.
LARGEST_SINGLE_FILE = 1_900_000_000


class _Outputs(nn.Module):
    """Says by name what the exported graph returns."""

    def __init__(self, model: ConvNeXt) -> None:
        super().__init__()
        self.model = model
        self.names = ["logits"] if model.num_classes else ["feature_map", "features"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        feature_map: Tensor = self.model.forward_features(images)
        pooled: Tensor = self.model.forward_head(feature_map)
        return (pooled,) if self.model.num_classes else (feature_map, pooled)


def export_onnx(
    model: nn.Module, path: Path, size: tuple[int, int] | None, metadata: Mapping[str, str]
) -> str:
    """Write a timm ConvNeXt as ONNX for any number and size of images; return a sentence on it.

    The input `images` is [batch, channels, height, width] in float32, normalised as the metadata
    say. A classifier returns `logits` [batch, classes]; an encoder `feature_map`
    [batch, D, rows, columns] and `features` [batch, D], what timm pools and normalises from it.
    As in timm, what is left of a side beyond whole cells of the last feature map is not looked at.

    Args:
        model: encoder or classifier, on any device; not changed.
        path: the file; replaced when ONNX Runtime has computed the same.
        size: (height, width) that the model was trained at, px, which is among those compared;
            None for 7 x 7 cells, which are 224 px.
        metadata: texts to keep with the graph.

    Raises:
        BackendUnavailableError: onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: ONNX Runtime computes something else; nothing is written then.
    """
    assert isinstance(model, ConvNeXt)
    outputs = _Outputs(copy.deepcopy(model).cpu().float()).eval()
    side = int(model.feature_info[-1]["reduction"])
    height, width = size or (CELLS * side, CELLS * side)
    # The model is traced at a size of its own: one that is compared, too, would prove less.
    traced = (2, 2 * side + 1, 3 * side + 2)
    compared = [(1, height, width), (3, side, 2 * side), (2, 3 * side + side // 2, 2 * side + 3)]
    return write_graph(
        outputs,
        outputs.names,
        path,
        model.stem[0].in_channels,
        traced,
        compared,
        metadata,
        smallest=side,
    )


def write_graph(
    outputs: nn.Module,
    names: Sequence[str],
    path: Path,
    channels: int,
    traced: Shape,
    compared: Sequence[Shape],
    metadata: Mapping[str, str],
    tolerance: float | None = None,
    smallest: int | None = None,
) -> str:
    """Write a module of images as an ONNX graph with free batch, height and width.

    Args:
        outputs: maps `images` [batch, channels, height, width] to a tuple of tensors; on the CPU,
            in evaluation mode.
        names: of these tensors.
        path: the file; replaced when ONNX Runtime has computed the same.
        channels: of the images.
        traced: (batch, height, width) that the graph is made with.
        compared: the same of random images on which ONNX Runtime must compute what the module does.
        metadata: texts to keep with the graph.
        tolerance: the largest difference, as a share of the largest value; None: as of all
            exports.
        smallest: side of an image that the module takes, px; None where the exporter has to find
            out, for which it traces twice.

    Returns:
        A sentence for the user: what was written, and how equal it is.

    Raises:
        As `export_onnx`.
    """
    onnx = _import_onnx()
    num_bytes = sum(4 * weight.numel() for weight in outputs.parameters())
    free = {
        0: torch.export.Dim("batch"),
        2: torch.export.Dim("height", min=smallest),
        3: torch.export.Dim("width", min=smallest),
    }

    def write(folder: Path) -> float:
        with progress_bar((), unit="step", total=2 + len(compared), title="ONNX") as bar:
            return write_and_compare(folder, bar)

    def write_and_compare(folder: Path, bar: Any) -> float:
        partial = folder / path.name  # the same name: the file of weights is known by it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's advice to its own developers
            torch.onnx.export(
                outputs,
                (torch.zeros(traced[0], channels, *traced[1:]),),
                str(partial),
                input_names=["images"],
                output_names=list(names),
                dynamic_shapes={"images": free},
                opset_version=OPSET,
                dynamo=True,
                external_data=num_bytes > LARGEST_SINGLE_FILE,
                verbose=False,
            )
        bar.update()
        graph = onnx.load(partial, load_external_data=False)
        onnx.helper.set_model_props(graph, dict(metadata))
        onnx.save(graph, partial)
        onnx.checker.check_model(str(partial))
        bar.update()
        largest = 0.0
        for gap in _differences(outputs, names, partial, channels, compared, tolerance):
            largest = max(largest, gap)
            bar.update()
        return largest

    largest = write_files(path.parent, write)
    shapes = [f"{batch} x {height} x {width}" for batch, height, width in compared]
    return (
        f"{path}: written as ONNX (opset {OPSET}, input images [batch, {channels}, height, "
        "width], "
        f"output {' and '.join(names)}); in ONNX Runtime with "
        f"{', '.join(shapes[:-1])} and {shapes[-1]} px of random images the largest difference is "
        f"{largest:.1e} of the largest value."
    )


def _differences(
    outputs: nn.Module,
    names: Sequence[str],
    path: Path,
    channels: int,
    compared: Sequence[Shape],
    tolerance: float | None,
) -> Iterator[float]:
    """Yield by what share ONNX Runtime differs on images of each shape."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = torch.Generator().manual_seed(0)
    for batch, height, width in compared:
        images = torch.randn(batch, channels, height, width, generator=rng)
        found = session.run(list(names), {"images": images.numpy()})
        with torch.no_grad():
            expected = outputs(images)
        yield largest_difference(
            dict(zip(names, expected, strict=True)),
            dict(zip(names, map(torch.from_numpy, found), strict=True)),
            *("ONNX Runtime", "the model"),
            tolerance=tolerance,
        )


def _import_onnx() -> Any:
    """Return the module onnx.

    Raises:
        BackendUnavailableError: one of the three packages that are needed is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import onnx
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnx: {error.name or 'onnx'} is not installed; run pip install 'fcmae[onnx]'."
        ) from error
    return onnx
