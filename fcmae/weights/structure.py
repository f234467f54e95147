"""What a ConvNeXt is made of, read from the names and sizes of its weights."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.model.decoder import Decoder
from fcmae.weights.formats import NUM_STAGES, Shape

MLP_RATIO = 4
# Variants whose MLPs are 1x1 convolutions in timm: atto, femto, pico and nano of V1 and V2, and
# convnext_tiny_hnf, by (depths, dims).
_SMALL = {
    ((2, 2, 6, 2), (40, 80, 160, 320)),
    ((2, 2, 6, 2), (48, 96, 192, 384)),
    ((2, 2, 6, 2), (64, 128, 256, 512)),
    ((2, 2, 8, 2), (80, 160, 320, 640)),
}
_TINY = ((3, 3, 9, 3), (96, 192, 384, 768))


@dataclass(frozen=True, kw_only=True)
class DecoderStructure:
    """Sizes of FCMAE's decoder.

    Attributes:
        dim: width.
        depth: number of blocks.
        outputs: values that the head predicts per cell.
        kernel_size: side of the depthwise kernels.
    """

    dim: int
    depth: int
    outputs: int
    kernel_size: int

    def shapes(self, encoder_dim: int) -> dict[str, Shape]:
        """Return the shape of every weight by its name in the common form."""
        shapes: dict[str, Shape] = {
            "decoder.mask_token": (1, self.dim, 1, 1),
            "decoder.projection.weight": (self.dim, encoder_dim, 1, 1),
            "decoder.projection.bias": (self.dim,),
            "decoder.head.weight": (self.outputs, self.dim, 1, 1),
            "decoder.head.bias": (self.outputs,),
        }
        for b in range(self.depth):
            block = _block_shapes(self.dim, self.kernel_size, has_grn=True)
            shapes |= {f"decoder.blocks.{b}.{name}": shape for name, shape in block.items()}
        return shapes

    def build(self, encoder_dim: int) -> Decoder:
        """Return an untrained decoder of this structure."""
        return Decoder(encoder_dim, self.dim, self.depth, 1, self.outputs)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Everything that decides which weights a ConvNeXt has, and their shapes.

    Attributes:
        in_chans: image channels.
        stem_size: side of the stem's kernel.
        dims, depths, kernel_sizes: per stage.
        conv_mlp: whether timm stores the MLPs as 1x1 convolutions.
        starts_with_downsample: whether the first stage halves the grid, as after a stem of 2.
        has_grn: V2.
        has_layer_scale: V1.
        has_conv_bias: whether convolutions have biases.
        final_norm: name of the last norm, `head.norm` after pooling or `norm_pre` before it.
        num_classes: of the classifier; None without one.
        decoder: of a whole FCMAE.
    """

    in_chans: int
    stem_size: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    conv_mlp: bool
    starts_with_downsample: bool
    has_grn: bool
    has_layer_scale: bool
    has_conv_bias: bool
    final_norm: str | None
    num_classes: int | None
    decoder: DecoderStructure | None

    @property
    def total_stride(self) -> int:
        """Pixels per cell of the last stage."""
        return self.stem_size * 2 ** (NUM_STAGES - 1 + self.starts_with_downsample)

    def shapes(self) -> dict[str, Shape]:
        """Return the shape of every weight by its name in the common form."""
        first = self.dims[0]
        shapes: dict[str, Shape] = {
            "stem.0.weight": (first, self.in_chans, self.stem_size, self.stem_size),
            "stem.0.bias": (first,),
            "stem.1.weight": (first,),
            "stem.1.bias": (first,),
        }
        for s, (dim, depth) in enumerate(zip(self.dims, self.depths, strict=True)):
            if s > 0 or self.starts_with_downsample:
                before = self.dims[max(0, s - 1)]
                shapes |= {
                    f"stages.{s}.downsample.0.weight": (before,),
                    f"stages.{s}.downsample.0.bias": (before,),
                    f"stages.{s}.downsample.1.weight": (dim, before, 2, 2),
                    f"stages.{s}.downsample.1.bias": (dim,),
                }
            block = _block_shapes(
                dim,
                self.kernel_sizes[s],
                has_grn=self.has_grn,
                has_layer_scale=self.has_layer_scale,
            )
            for b in range(depth):
                shapes |= {f"stages.{s}.blocks.{b}.{name}": shape for name, shape in block.items()}
        if self.final_norm is not None:
            shapes |= {f"{self.final_norm}.{end}": (self.dims[-1],) for end in ("weight", "bias")}
        if self.num_classes is not None:
            shapes["head.fc.weight"] = (self.num_classes, self.dims[-1])
            shapes["head.fc.bias"] = (self.num_classes,)
        if not self.has_conv_bias:
            shapes = {name: shape for name, shape in shapes.items() if not _is_conv_bias(name)}
        if self.decoder is not None:
            shapes |= self.decoder.shapes(self.dims[-1])
        return shapes

    def build(self) -> ConvNeXt:
        """Return an untrained timm model of this structure, with a classifier if there is one."""
        return ConvNeXt(
            in_chans=self.in_chans,
            num_classes=self.num_classes or 0,
            depths=self.depths,
            dims=self.dims,
            kernel_sizes=self.kernel_sizes,
            patch_size=self.stem_size,
            conv_mlp=self.conv_mlp,
            conv_bias=self.has_conv_bias,
            use_grn=self.has_grn,
            ls_init_value=1.0 if self.has_layer_scale else None,
            head_norm_first=self.final_norm == "norm_pre",
        )


def read_structure(stored: Mapping[str, Tensor], *, is_timm: bool) -> Structure:
    """Read the structure from tensors under the common form's names, stored in any layout.

    Where entries disagree the majority decides, so that the one that is wrong can be named.

    Args:
        stored: tensor by name.
        is_timm: whether MLPs are stored as timm has them; else timm's variants say how.
    """
    sizes = {name: tensor.numel() for name, tensor in stored.items()}
    dims, depths, kernel_sizes = [], [], []
    for s in range(NUM_STAGES):
        dim = _majority(size for name, size in sizes.items() if _is_vector_of_stage(name, s))
        start = f"stages.{s}.blocks."
        blocks = [int(name.split(".")[3]) for name in sizes if name.startswith(start)]
        kernels = (
            size
            for name, size in sizes.items()
            if name.startswith(start) and name.endswith(".conv_dw.weight")
        )
        dims.append(dim)
        depths.append(max(blocks, default=0) + 1)
        kernel_sizes.append(_side(_majority(kernels), dim))
    stem = stored.get("stem.0.weight")
    in_chans, stem_size = 3, 4
    if stem is not None and stem.dim() == 4:
        in_chans, stem_size = stem.shape[1], stem.shape[2]
    norms = [
        n for n in ("head.norm", "norm_pre") if f"{n}.weight" in stored or f"{n}.bias" in stored
    ]
    sizes_of_stages = (tuple(depths), tuple(dims))
    conv_mlp = sizes_of_stages in _SMALL or (sizes_of_stages == _TINY and norms == ["norm_pre"])
    if is_timm:
        mlps = (n for n in stored if _is_of_encoder(n) and n.endswith(".mlp.fc1.weight"))
        conv_mlp = _majority(stored[name].dim() for name in mlps) == 4
    has_decoder = any(name.startswith("decoder.") for name in stored)
    classifier = [sizes[name] for name in ("head.fc.bias",) if name in stored]
    if not classifier and "head.fc.weight" in stored:
        classifier = [stored["head.fc.weight"].shape[0]]
    return Structure(
        in_chans=in_chans,
        stem_size=stem_size,
        dims=tuple(dims),
        depths=tuple(depths),
        kernel_sizes=tuple(kernel_sizes),
        conv_mlp=conv_mlp,
        starts_with_downsample=any(name.startswith("stages.0.downsample.") for name in stored),
        has_grn=any(_is_of_encoder(name) and ".mlp.grn." in name for name in stored),
        has_layer_scale=any(_is_of_encoder(name) and name.endswith(".gamma") for name in stored),
        has_conv_bias=any(_is_conv_bias(name) for name in stored),
        final_norm=norms[0] if norms else None,
        num_classes=classifier[0] if classifier else None,
        decoder=_read_decoder(sizes) if has_decoder else None,
    )


def _read_decoder(sizes: Mapping[str, int]) -> DecoderStructure:
    own = {name: size for name, size in sizes.items() if name.startswith("decoder.")}
    vectors = (
        "decoder.mask_token",
        "decoder.projection.bias",
        ".norm.weight",
        ".norm.bias",
        ".conv_dw.bias",
        ".fc2.bias",
    )
    dim = _majority(size for name, size in own.items() if name.endswith(vectors))
    blocks = [int(name.split(".")[2]) for name in own if name.startswith("decoder.blocks.")]
    kernels = (size for name, size in own.items() if name.endswith(".conv_dw.weight"))
    outputs = own.get("decoder.head.bias", own.get("decoder.head.weight", 0) // max(1, dim))
    return DecoderStructure(
        dim=dim,
        depth=max(blocks, default=-1) + 1,
        outputs=outputs,
        kernel_size=_side(_majority(kernels), dim),
    )


def _block_shapes(
    dim: int, kernel_size: int, *, has_grn: bool, has_layer_scale: bool = False
) -> dict[str, Shape]:
    width = MLP_RATIO * dim
    shapes: dict[str, Shape] = {
        "conv_dw.weight": (dim, 1, kernel_size, kernel_size),
        "conv_dw.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "mlp.fc1.weight": (width, dim),
        "mlp.fc1.bias": (width,),
        "mlp.fc2.weight": (dim, width),
        "mlp.fc2.bias": (dim,),
    }
    if has_grn:
        shapes |= {"mlp.grn.weight": (width,), "mlp.grn.bias": (width,)}
    return shapes | ({"gamma": (dim,)} if has_layer_scale else {})


def _is_of_encoder(name: str) -> bool:
    return name.startswith("stages.")


def _is_conv_bias(name: str) -> bool:
    ends = (".conv_dw.bias", ".downsample.1.bias")
    return name == "stem.0.bias" or (_is_of_encoder(name) and name.endswith(ends))


def _is_vector_of_stage(name: str, stage: int) -> bool:
    """Whether the entry holds one value per channel of the stage, in every layout."""
    ends = (".norm.weight", ".norm.bias", ".conv_dw.bias", ".fc2.bias", ".gamma")
    if name.startswith(f"stages.{stage}.blocks.") and name.endswith(ends):
        return True
    following = (f"stages.{stage + 1}.downsample.0.weight", f"stages.{stage + 1}.downsample.0.bias")
    stem = ("stem.0.bias", "stem.1.weight", "stem.1.bias") if stage == 0 else ()
    return name in (f"stages.{stage}.downsample.1.bias", *following, *stem)


def _majority(values: object) -> int:
    """Return the most frequent value; 0 of none."""
    counted = Counter(values).most_common(1)  # type: ignore[call-overload]
    return int(counted[0][0]) if counted else 0


def _side(size: int, dim: int) -> int:
    """Return the side of the square kernel of a depthwise convolution with `size` weights."""
    return math.isqrt(size // max(1, dim))
