"""Writes an encoder or a classifier as ONNX and compares it with ONNX Runtime's results."""

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from fcmae.errors import BackendUnavailableError
from fcmae.runs.durable import write_files
from fcmae.weights.proof import largest_difference

OPSET = 18
CELLS = 7  # on a side of the last feature map, where nobody says the size of the images
CHECKED_BATCHES = (1, 3)  # neither is the batch that the model is traced with
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
    """Write a timm ConvNeXt as ONNX with any batch size, and return a sentence that says so.

    The input `images` is [batch, channels, height, width] in float32, normalised as the metadata
    say. A classifier returns `logits` [batch, classes]; an encoder `feature_map`
    [batch, D, rows, columns] and `features` [batch, D], what timm pools and normalises from it.

    Args:
        model: encoder or classifier, on any device; not changed.
        path: the file; replaced when ONNX Runtime has computed the same.
        size: (height, width) of the input, px; None for 7 x 7 cells, which are 224 px.
        metadata: texts to keep with the graph.

    Raises:
        BackendUnavailableError: onnx, onnxscript or onnxruntime is not installed.
        CheckpointError: ONNX Runtime computes something else; nothing is written then.
    """
    onnx = _import_onnx()
    assert isinstance(model, ConvNeXt)
    outputs = _Outputs(copy.deepcopy(model).cpu().float()).eval()
    num_bytes = sum(4 * weight.numel() for weight in outputs.parameters())
    in_chans = model.stem[0].in_channels
    height, width = size or (CELLS * int(model.feature_info[-1]["reduction"]),) * 2
    shape = (in_chans, height, width)

    def write(folder: Path) -> float:
        partial = folder / path.name  # the same name: the file of weights is known by it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's advice to its own developers
            torch.onnx.export(
                outputs,
                (torch.zeros(2, *shape),),
                str(partial),
                input_names=["images"],
                output_names=outputs.names,
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                opset_version=OPSET,
                dynamo=True,
                external_data=num_bytes > LARGEST_SINGLE_FILE,
                verbose=False,
            )
        graph = onnx.load(partial, load_external_data=False)
        onnx.helper.set_model_props(graph, dict(metadata))
        onnx.save(graph, partial)
        onnx.checker.check_model(str(partial))
        return _largest_difference(outputs, partial, shape)

    largest = write_files(path.parent, write)
    return (
        f"{path}: written as ONNX (opset {OPSET}, input images [batch, {in_chans}, "
        f"{height}, {width}], output {' and '.join(outputs.names)}); in "
        f"ONNX Runtime with batches of {CHECKED_BATCHES[0]} and {CHECKED_BATCHES[1]} random images "
        f"the largest difference is {largest:.1e} of the largest value."
    )


@torch.no_grad()
def _largest_difference(outputs: _Outputs, path: Path, shape: tuple[int, int, int]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = torch.Generator().manual_seed(0)
    largest = 0.0
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, *shape, generator=rng)
        found = session.run(outputs.names, {"images": images.numpy()})
        gap = largest_difference(
            dict(zip(outputs.names, outputs(images), strict=True)),
            dict(zip(outputs.names, map(torch.from_numpy, found), strict=True)),
            *("ONNX Runtime", "the model"),
        )
        largest = max(largest, gap)
    return largest


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
