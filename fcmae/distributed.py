"""The processes that train together, as torchrun starts them; one process without it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fcmae.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process and the others.

    Attributes:
        rank: number of this process, 0 writes files.
        world_size: number of processes.
        device: where this process computes.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of `values` over all processes, the same in each."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def from_main(self, value: object) -> object:
        """Return the main process's `value`, plain data, in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: list[object]) -> list[object]:
        """Return the lists of all processes joined in the order of rank, in every process."""
        if self.world_size == 1:
            return value
        boxes: list[list[object]] = [[] for _ in range(self.world_size)]
        dist.all_gather_object(boxes, value)
        return [item for box in boxes for item in box]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the process that prints, also before or after the group exists."""
    return os.environ.get("RANK", "0") == "0"


def start_processes(device: str) -> Processes:
    """Join the processes that torchrun started (nccl on CUDA, gloo on CPU), or be alone.

    Args:
        device: auto, cpu, cuda or cuda:N; with several processes each takes its own GPU.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank if world_size > 1 else None)
    if world_size == 1:
        return Processes(0, 1, chosen)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), world_size, chosen)


def choose_device(device: str, local_rank: int | None = None) -> torch.device:
    """Return the torch device of a `train.device` setting; see start_processes."""
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"train.device: got {device!r}, expected auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if not has_cuda:
        raise ConfigError(
            f"train.device: got {device!r}, but torch finds no usable GPU on this machine; "
            "use cpu, or a CUDA build of torch."
        )
    index = local_rank if local_rank is not None else int(number or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: GPU {index} is asked for and {torch.cuda.device_count()} are here; "
            "start fewer processes per node, or name another GPU."
        )
    return torch.device("cuda", index)
