"""What `fcmae bench` measures; every field is an option of the command."""

import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fcmae.errors import ConfigError
from fcmae.settings.ranges import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ShareBelowOne,
    at_least,
    check_ranges,
)
from fcmae.settings.sections import Compiling

Backend = Literal["native", "masked_dense", "minkowski"]
Pixels = Annotated[int, at_least(32)]
Part = Literal["forward", "backward", "step", "evaluation"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Measure time and memory of pretraining on this machine, side by side.

    Every combination of models, precisions and parts is one group, whose members (backends at
    every ratio, and the alternatives) take turns, so that disturbance meets them alike.
    """

    models: list[str] = field(default_factory=lambda: ["convnextv2_atto", "convnextv2_tiny"])
    """timm names of the encoders."""
    backends: list[Backend] = field(default_factory=lambda: ["native", "masked_dense"])
    """Backends to compare."""
    ratios: list[ShareBelowOne] = field(default_factory=lambda: [0.6, 0.9])
    """Masking ratios."""
    precisions: list[Precision] = field(default_factory=lambda: ["fp32"])
    """fp32, or bf16 by autocast."""
    parts: list[Part] = field(default_factory=lambda: ["backward", "step"])
    """forward: of the encoder; backward: forward and backward of it; step: a whole training step
    with decoder, loss and optimizer, against the dense timm model and a ViT-MAE; evaluation:
    features of whole images as scores and embed take them, against timm's own forward."""
    batch_size: PositiveInt | list[PositiveInt] = 8
    """Images per step; several are compared in turns, in units of the first."""
    image_size: Pixels | list[Pixels] = 224
    """Pixels per side; several are compared in turns, in units of the first."""
    repeats: PositiveInt = 7
    """Rounds; the median over them is reported."""
    threads: NonNegativeInt | list[NonNegativeInt] = 1
    """Threads on a CPU; 0 leaves it to torch. Several are compared in turns, in units of the
    first."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    compile: Compiling = False
    """Also compile with torch.compile; true is its mode default."""
    memory: bool = True
    """Measure peak memory of training steps, each in a fresh process."""
    output: str = "bench"
    """Folder for results.json and one PNG per part."""
    against: list[str] = field(default_factory=list)
    """`--against authors FOLDER`: whole steps in turns with the authors' own code, on
    MinkowskiEngine; FOLDER is a clone of facebookresearch/ConvNeXt-V2."""
    suite: bool = False
    """`--suite`: the whole table of this machine in under nine minutes, in suite.json and suite.md;
    of the other options only device, threads, minutes and output count."""
    minutes: PositiveFloat = 9.0
    """Minutes that the suite may take; what finds no time is listed."""
    small: bool = False
    """`--small`: the suite on the smallest model and images, which shows that it runs."""
    starting: bool = False
    """`--starting`: seconds from the command of a pretraining on 10,000 made files to the end of
    its first step; of the other options only repeats counts."""
    data: str | None = None
    """Folder of images: measure how fast they are read, beside training steps of the models."""

    def __post_init__(self) -> None:
        check_ranges(self, "--")
        for name in (
            *("models", "backends", "ratios", "precisions", "parts"),
            *("batch_size", "image_size", "threads"),
        ):
            if getattr(self, name) == []:
                raise ConfigError(f"--{name}: got an empty list, expected one or more.")
        if self.against and (
            self.against[0] != "authors" or len([*filter(None, self.against)]) != 2
        ):
            raise ConfigError(
                f"--against: got {' '.join(self.against)!r}, expected authors FOLDER, where FOLDER "
                "is a clone of facebookresearch/ConvNeXt-V2."
            )
        if self.against and (list(self.parts) != ["step"] or self.precisions != ["fp32"]):
            raise ConfigError(
                "--against: the authors' code takes whole training steps in fp32; "
                'say --parts "[step]" and leave --precisions out.'
            )
        for pixels in _as_list(self.image_size):
            if pixels % 32:
                raise ConfigError(f"--image_size: got {pixels} px, expected a multiple of 32 px.")
        if set(self.ratios) & {0.0} and "step" in self.parts:
            raise ConfigError(
                "--ratios: at 0 nothing is hidden and a training step has nothing to learn; "
                "leave 0 out, or leave step out of --parts."
            )

    @property
    def sizes(self) -> list[tuple[int, int, int]]:
        """Every (batch size, image size, threads) that is compared."""
        batches, sides, threads = map(_as_list, (self.batch_size, self.image_size, self.threads))
        return list(itertools.product(batches, sides, threads))


def _as_list(values: int | list[int]) -> list[int]:
    return [values] if isinstance(values, int) else values
