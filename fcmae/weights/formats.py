"""Names and shapes of a ConvNeXt's weights in every known layout, as explicit tables.

The common form of all conversions is timm's names with plain shapes (vectors [C], MLP weights
[out, in]), and the decoder under this project's names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from sparse.backends.authors_layout import (
    BLOCK_NAMES,
    DOWNSAMPLE_NAMES,
    NORM_NAMES,
    ROWS,
    kernel_shape,
    to_authors_layout,
    to_timm_layout,
)

if TYPE_CHECKING:  # torch takes seconds to load, and help needs the names alone
    from torch import Tensor

Shape = tuple[int, ...]
Value = TypeVar("Value")
NUM_STAGES = 4


class Layout(Enum):
    """How a tensor of the common form is stored; see `stored_shape`."""

    SAME = "same"
    ROW = "row"
    GRID = "grid"
    GRN_VECTOR = "grn vector"
    GRN_ROW = "grn row"
    GRN_GRID = "grn grid"
    MLP = "mlp"
    KERNEL = "kernel"


_VECTOR_SHAPES = {
    Layout.ROW: 1,
    Layout.GRN_VECTOR: 0,
    Layout.GRN_ROW: 1,
    Layout.GRN_GRID: 3,
}  # number of leading ones


def stored_shape(layout: Layout, shape: Shape, *, conv_mlp: bool) -> Shape:
    """Return the shape in which a tensor of `shape` is written."""
    if layout in _VECTOR_SHAPES:
        return (1,) * _VECTOR_SHAPES[layout] + shape
    if layout is Layout.MLP and conv_mlp:
        return (*shape, 1, 1)
    return kernel_shape(shape) if layout is Layout.KERNEL else shape


def accepted_shapes(layout: Layout, shape: Shape) -> set[Shape]:
    """Return the shapes in which a tensor of `shape` is read: GRN's in each known form."""
    if layout in (Layout.GRN_VECTOR, Layout.GRN_ROW, Layout.GRN_GRID):
        return {shape, (1, *shape), (1, 1, 1, *shape)}
    return {stored_shape(layout, shape, conv_mlp=conv_mlp) for conv_mlp in (False, True)}


def store(tensor: Tensor, layout: Layout, *, conv_mlp: bool) -> Tensor:
    """Turn a tensor of the common form into the stored one."""
    shape = stored_shape(layout, tuple(tensor.shape), conv_mlp=conv_mlp)
    if layout is Layout.KERNEL:
        return to_authors_layout(tensor, shape, ".kernel").contiguous()
    return tensor.reshape(shape).contiguous()


def restore(tensor: Tensor, layout: Layout, shape: Shape) -> Tensor:
    """Turn a stored tensor into the common form, the inverse of `store`."""
    if layout is Layout.KERNEL:
        return to_timm_layout(tensor, shape, ".kernel").contiguous()
    return tensor.reshape(shape)


@dataclass(frozen=True)
class Entry:
    """One weight of a layout: its name, with {b} for the number of a block, and how it is stored.

    Attributes:
        name: as in the file.
        layout: as in the file.
    """

    name: str
    layout: Layout = Layout.SAME


@dataclass(frozen=True, eq=False)
class Format:
    """A layout of weights files.

    Attributes:
        name: what the user calls it.
        entries: entry by the common form's name, both with {b} for the number of a block.
        has_decoder: whether a file without a decoder is incomplete.
        needs_final_norm: whether a file without the norm before the classifier is incomplete.
    """

    name: str
    entries: Mapping[str, Entry]
    has_decoder: bool = False
    needs_final_norm: bool = False

    def entry(self, common_name: str) -> Entry | None:
        """Return the entry of a weight, its block filled in; None if there is no place for it."""
        found = _look_up(self.entries, common_name)
        if found is None:
            return None
        entry, block = found
        return Entry(entry.name.replace("{b}", block), entry.layout)

    def common_name(self, name: str) -> str | None:
        """Return the common form's name of an entry; None if it is none of this layout."""
        found = _look_up(self._common_names, name)
        return None if found is None else found[0].replace("{b}", found[1])

    @functools.cached_property
    def _common_names(self) -> dict[str, str]:
        return {entry.name: common_name for common_name, entry in self.entries.items()}


def _look_up(table: Mapping[str, Value], name: str) -> tuple[Value, str] | None:
    """Return the value of `name` in a table of templates, and the number that {b} stands for."""
    if name in table:
        return table[name], ""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal() and part == str(int(part)):
            template = ".".join([*parts[:position], "{b}", *parts[position + 1 :]])
            if template in table:
                return table[template], part
    return None


# The common form's names of a block's weights, and where each layout differs from them.
_TIMM_BLOCK = {
    "conv_dw.weight": Entry("conv_dw.weight"),
    "conv_dw.bias": Entry("conv_dw.bias"),
    "norm.weight": Entry("norm.weight"),
    "norm.bias": Entry("norm.bias"),
    "mlp.fc1.weight": Entry("mlp.fc1.weight", Layout.MLP),
    "mlp.fc1.bias": Entry("mlp.fc1.bias"),
    "mlp.grn.weight": Entry("mlp.grn.weight", Layout.GRN_VECTOR),
    "mlp.grn.bias": Entry("mlp.grn.bias", Layout.GRN_VECTOR),
    "mlp.fc2.weight": Entry("mlp.fc2.weight", Layout.MLP),
    "mlp.fc2.bias": Entry("mlp.fc2.bias"),
    "gamma": Entry("gamma"),
}
_DENSE_BLOCK = {
    "conv_dw.weight": Entry("dwconv.weight"),
    "conv_dw.bias": Entry("dwconv.bias"),
    "norm.weight": Entry("norm.weight"),
    "norm.bias": Entry("norm.bias"),
    "mlp.fc1.weight": Entry("pwconv1.weight"),
    "mlp.fc1.bias": Entry("pwconv1.bias"),
    "mlp.grn.weight": Entry("grn.gamma", Layout.GRN_GRID),
    "mlp.grn.bias": Entry("grn.beta", Layout.GRN_GRID),
    "mlp.fc2.weight": Entry("pwconv2.weight"),
    "mlp.fc2.bias": Entry("pwconv2.bias"),
    "gamma": Entry("gamma"),
}
_HUGGINGFACE_BLOCK = _DENSE_BLOCK | {
    "norm.weight": Entry("layernorm.weight"),
    "norm.bias": Entry("layernorm.bias"),
    "mlp.grn.weight": Entry("grn.weight", Layout.GRN_GRID),
    "mlp.grn.bias": Entry("grn.bias", Layout.GRN_GRID),
    "gamma": Entry("layer_scale_parameter"),
}
_TWO_LAYERS = ("0.weight", "0.bias", "1.weight", "1.bias")
_DENSE_DOWNSAMPLE = {name: Entry(name) for name in _TWO_LAYERS}
_STEM = {f"stem.{name}": Entry(f"stem.{name}") for name in _TWO_LAYERS}


def _moved(entries: Mapping[str, Entry], timm_prefix: str, prefix: str) -> dict[str, Entry]:
    """Put prefixes before the common form's names and the layout's."""
    return {
        timm_prefix + name: Entry(prefix + entry.name, entry.layout)
        for name, entry in entries.items()
    }


def _timm(prefix: str = "") -> dict[str, Entry]:
    entries = _moved(_STEM, "", prefix)
    for s in range(NUM_STAGES):
        downsample, blocks = f"stages.{s}.downsample.", f"stages.{s}.blocks.{{b}}."
        entries |= _moved(_DENSE_DOWNSAMPLE, downsample, prefix + downsample)
        entries |= _moved(_TIMM_BLOCK, blocks, prefix + blocks)
    last = ("norm_pre.weight", "norm_pre.bias", "head.norm.weight", "head.norm.bias")
    entries |= {name: Entry(prefix + name) for name in (*last, "head.fc.weight", "head.fc.bias")}
    return entries


def _authors(
    downsample: Mapping[str, Entry], block: Mapping[str, Entry], prefix: str = ""
) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name in _STEM:  # a stem is the first downsampling layer, convolution first
        entries[name] = Entry(name.replace("stem", f"{prefix}downsample_layers.0"))
    for s in range(NUM_STAGES):
        layers = f"{prefix}downsample_layers.{s}."
        own = downsample
        if s == 0:  # only with a stem of stride 2, which the authors do not have
            own = {
                name: Entry(f"{int(entry.name[0]) + 2}{entry.name[1:]}", entry.layout)
                for name, entry in downsample.items()
            }
        entries |= _moved(own, f"stages.{s}.downsample.", layers)
        entries |= _moved(block, f"stages.{s}.blocks.{{b}}.", f"{prefix}stages.{s}.{{b}}.")
    return entries


def _authors_dense() -> dict[str, Entry]:
    return _authors(_DENSE_DOWNSAMPLE, _DENSE_BLOCK) | {
        "head.norm.weight": Entry("norm.weight"),
        "head.norm.bias": Entry("norm.bias"),
        "head.fc.weight": Entry("head.weight"),
        "head.fc.bias": Entry("head.bias"),
    }


def _authors_sparse(prefix: str = "") -> dict[str, Entry]:
    entries = _authors(_sparse(DOWNSAMPLE_NAMES), _sparse(BLOCK_NAMES), prefix)
    return entries | _moved(_sparse(NORM_NAMES), "norm_pre.", f"{prefix}norm_pre.")


def _sparse(names: Mapping[str, str]) -> dict[str, Entry]:
    """Return the entries of the authors' sparse names, {theirs: timm's}."""

    def layout(name: str) -> Layout:
        if name.endswith(".kernel"):
            return Layout.KERNEL
        if name in ROWS:
            return Layout.GRN_ROW if name.startswith("grn.") else Layout.ROW
        return Layout.SAME

    return {timm: Entry(name, layout(name)) for name, timm in names.items()}


def _huggingface(prefix: str) -> dict[str, Entry]:
    entries = {
        "stem.0.weight": Entry(f"{prefix}embeddings.patch_embeddings.weight"),
        "stem.0.bias": Entry(f"{prefix}embeddings.patch_embeddings.bias"),
        "stem.1.weight": Entry(f"{prefix}embeddings.layernorm.weight"),
        "stem.1.bias": Entry(f"{prefix}embeddings.layernorm.bias"),
    }
    for s in range(NUM_STAGES):
        stage = f"{prefix}encoder.stages.{s}."
        if s > 0:
            downsample = f"stages.{s}.downsample."
            entries |= _moved(_DENSE_DOWNSAMPLE, downsample, f"{stage}downsampling_layer.")
        entries |= _moved(_HUGGINGFACE_BLOCK, f"stages.{s}.blocks.{{b}}.", f"{stage}layers.{{b}}.")
    entries |= {f"head.norm.{end}": Entry(f"{prefix}layernorm.{end}") for end in ("weight", "bias")}
    if prefix:  # a classifier wraps the model
        entries |= {f"head.fc.{end}": Entry(f"classifier.{end}") for end in ("weight", "bias")}
    return entries


def _decoder(
    mask_token: str, projection: str, blocks: str, block: Mapping[str, Entry], head: str
) -> dict[str, Entry]:
    entries = {"decoder.mask_token": Entry(mask_token)}
    entries |= _moved(block, "decoder.blocks.{b}.", f"{blocks}.{{b}}.")
    for end in ("weight", "bias"):
        entries[f"decoder.projection.{end}"] = Entry(f"{projection}.{end}")
        entries[f"decoder.head.{end}"] = Entry(f"{head}.{end}")
    return entries


_OWN_DECODER = _decoder(
    "decoder.mask_token",
    "decoder.projection",
    "decoder.blocks",
    # the decoder's MLPs are linear layers, whatever the encoder's are
    {n: Entry(n) if e.layout is Layout.MLP else e for n, e in _TIMM_BLOCK.items()},
    "decoder.head",
)
_AUTHORS_DECODER = _decoder("mask_token", "proj", "decoder", _DENSE_BLOCK, "pred")

# Of several formats with one name, the first that holds all of a model is written.
FORMATS = (
    Format("fcmae", _timm("encoder.") | _OWN_DECODER, has_decoder=True, needs_final_norm=True),
    Format("timm", _timm(), needs_final_norm=True),
    Format("authors-dense", _authors_dense()),
    Format("authors-sparse", _authors_sparse()),
    Format("authors-fcmae", _authors_sparse("encoder.") | _AUTHORS_DECODER, has_decoder=True),
    Format("huggingface", _huggingface(""), needs_final_norm=True),
    Format("huggingface", _huggingface("convnextv2."), needs_final_norm=True),
    Format("huggingface", _huggingface("convnext."), needs_final_norm=True),
)
FORMAT_NAMES = tuple(dict.fromkeys(known.name for known in FORMATS))
ONNX = "onnx"  # written, never read: a graph, no table of names
SMP = "smp"  # of segmenters only: a folder of segmentation_models_pytorch
TIMM_FOLDER = "timm-folder"  # timm's names beside what says how they are built and fed
# All that can be written, and what follows `encoder` or `classifier` in its name by default.
FILE_NAMES = {
    "timm": ".safetensors",
    TIMM_FOLDER: "-timm",
    "huggingface": "-huggingface",
    ONNX: ".onnx",
    SMP: "-smp",
    "authors-dense": "-authors-dense.pth",
    "authors-sparse": "-authors-sparse.pth",
    "authors-fcmae": "-authors-fcmae.pth",
    "fcmae": "-fcmae.safetensors",
}
