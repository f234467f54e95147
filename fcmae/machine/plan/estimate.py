"""`fcmae plan --for h100 --gpus 8`: what a pretraining would take on hardware that is not here."""

import dataclasses

from fcmae.machine.plan.roofline import (
    STATE_BYTES,
    Hardware,
    Stage,
    count_stages,
    num_parameters,
    saved_bytes,
)
from fcmae.settings.pretrain import PretrainConfig

EFFICIENCY = 0.5  # share of the roofline that a step is taken to reach
OVERLAP = 0.5  # share of the exchange of gradients that the backward pass hides
DAY, HOUR = 86400.0, 3600.0


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a pretraining would take.

    Attributes:
        machine: what it would run on.
        gpus: how many of it.
        images: of the data set.
        epochs: passes over them.
        batch: images of a step on each GPU.
        parameters: that train.
        stages: parts of a step.
        image_bytes: activations kept per image.
    """

    machine: Hardware
    gpus: int
    images: int
    epochs: float
    batch: int
    parameters: int
    stages: list[Stage]
    image_bytes: float

    @property
    def roofline_seconds(self) -> float:
        """The least time of a step on one GPU."""
        return sum(stage.seconds(self.machine) for stage in self.stages)

    @property
    def exchanged_bytes(self) -> float:
        """Gradients in float32 that each GPU sends in a step: a ring's two passes."""
        return 2 * (self.gpus - 1) / self.gpus * 4 * self.parameters

    @property
    def exchange_seconds(self) -> float:
        """Of the exchange, were nothing of it hidden."""
        return self.exchanged_bytes / self.machine.link

    @property
    def step_seconds(self) -> float:
        """Of a step as it is expected."""
        return self.roofline_seconds / EFFICIENCY + (1 - OVERLAP) * self.exchange_seconds

    @property
    def total_seconds(self) -> float:
        """Of the steps of the whole run."""
        steps = self.images * self.epochs / (self.batch * self.gpus)
        return steps * self.step_seconds

    @property
    def memory_bytes(self) -> float:
        """Of each GPU: weights, gradients, moments and activations."""
        return STATE_BYTES * self.parameters + self.batch * self.image_bytes

    def describe(self) -> str:
        """Return the estimate and its assumptions."""
        rate = self.batch * self.gpus / self.step_seconds
        share = self.exchange_seconds / self.step_seconds
        lines = [
            f"estimated, not measured: {self.gpus} x {self.machine.name}, {self.images} images, "
            f"{self.epochs:g} epochs, {self.batch} images per GPU and step, bf16",
            f"  time           {_duration(self.total_seconds)} (estimated; "
            f"{1e3 * self.step_seconds:.1f} ms per step, {rate:.0f} images/s)",
            f"  memory         {self.memory_bytes / 2**30:.1f} GiB per GPU (estimated) of "
            f"{self.machine.memory / 2**30:.0f}",
            f"  gradients      {self.exchanged_bytes / 2**20:.0f} MiB per step and GPU, "
            f"{1e3 * self.exchange_seconds:.2f} ms: {share:.0%} of the step, half of it hidden",
            "",
            "  least time of a step, ms, by part:",
        ]
        for stage in self.stages:
            lines.append(
                f"    {stage.name:<28}{1e3 * stage.seconds(self.machine):8.2f}  "
                f"({stage.flops / 1e12:.2f} TFLOP, {stage.bytes / 1e9:.2f} GB; bound by "
                f"{stage.bound(self.machine)})"
            )
        lines += [
            f"    {'together':<28}{1e3 * self.roofline_seconds:8.2f}",
            "",
            "  assumptions: "
            f"products at {self.machine.flops / 1e12:.0f} TFLOP/s, memory at "
            f"{self.machine.bytes / 1e12:.1f} TB/s, exchange at {self.machine.link / 1e9:.0f} GB/s "
            f"per GPU; a step reaches {EFFICIENCY:.0%} of this roofline; {OVERLAP:.0%} of the "
            "exchange is hidden; reading keeps up; scores, pictures and checkpoints are left out.",
        ]
        if self.memory_bytes > self.machine.memory:
            lines.append("  this does not fit into the memory; take a smaller --train.batch_size.")
        return "\n".join(lines)


def estimate(
    config: PretrainConfig, machine: Hardware, gpus: int, images: int, epochs: float
) -> Estimate:
    """Return what the model of a config would take; nothing is computed.

    Args:
        config: of the run; its batch is that of each GPU.
        machine: what it would run on.
        gpus: how many of it.
        images: of the data set.
        epochs: passes over them.

    Raises:
        ConfigError: a model that cannot be.
        UnsupportedModelError: an encoder that cannot run sparsely.
    """
    batch = config.train.batch_size
    stages = count_stages(config, batch)
    parameters, kept = num_parameters(config), saved_bytes(config)
    return Estimate(machine, gpus, images, epochs, batch, parameters, stages, kept)


def _duration(seconds: float) -> str:
    if seconds >= 2 * DAY:
        return f"{seconds / DAY:.1f} days"
    return f"{seconds / HOUR:.1f} hours" if seconds >= HOUR else f"{seconds / 60:.0f} minutes"
