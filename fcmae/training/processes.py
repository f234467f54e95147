"""The processes that train together, as torchrun starts them; one process without it."""

import datetime
import gc
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from fcmae.errors import ConfigError, DataError

Result = TypeVar("Result")

# While one process scores or exports, the others wait; a process that dies ends all at once.
LONGEST_WAIT = datetime.timedelta(hours=2)
MEETING_WAIT = datetime.timedelta(minutes=5)


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

    def from_main(self, make: Callable[[], Any]) -> Any:
        """Return what `make` returns in the main process, in every process, tensors on the CPU.

        It may be plain data and tensors in dicts, lists and tuples. What `make` raises is raised
        in every process, so that none waits for the others.
        """
        if self.world_size == 1:
            return make()
        value: Any = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = make()
            except Exception as raised:
                error = raised
        tensors: list[torch.Tensor] = []
        box = [(_take_tensors(value, tensors), error)]
        dist.broadcast_object_list(box, src=0, device=self.device)
        plain, error = box[0]
        if error is not None:
            raise error
        return _put_tensors(plain, iter(tensors), self._broadcast)

    def in_each(self, make: Callable[[], Result]) -> Result:
        """Return what `make` returns in this process, once it has succeeded in every process.

        Raises:
            Exception: what `make` raised here.
            DataError: it raised in another process: none goes on alone.
        """
        value: Result | None = None
        error: Exception | None = None
        try:
            value = make()
        except Exception as raised:
            error = raised
        # As texts: not every exception can travel.
        texts: Any = self.gather([] if error is None else [str(error) or type(error).__name__])
        if error is not None:
            raise error
        if texts:
            raise DataError(" ".join(texts[0].split()))
        return cast(Result, value)

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the main process's `tensor`; the others give one of the same shape and type."""
        on_device = tensor.to(self.device)
        dist.broadcast(on_device, src=0)
        return on_device.cpu()

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
        """Leave the group, and end its threads.

        DistributedDataParallel holds the group. A thread of gloo that outlives the interpreter and
        then frees a tensor aborts the process, after everything was done.
        """
        if dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()


def is_main_process() -> bool:
    """Whether this is the process that prints, also before or after the group exists."""
    return os.environ.get("RANK", "0") == "0"


def is_first_of_node() -> bool:
    """Whether this is the process that does what each machine needs once."""
    return _from_environment("LOCAL_RANK", 0) == 0


def processes_of_node() -> int:
    """Return how many processes train on this machine."""
    return _from_environment("LOCAL_WORLD_SIZE", 1)


def start_processes(device: str) -> Processes:
    """Join the processes that torchrun started (nccl on CUDA, gloo on CPU), or be alone.

    Args:
        device: auto, cpu, cuda or cuda:N; with several processes each takes its own GPU.

    Raises:
        ConfigError: a device that this machine does not have, or a launcher's variables that
            make no sense.
    """
    world_size, local_rank = _from_environment("WORLD_SIZE", 1), _from_environment("LOCAL_RANK", 0)
    chosen = choose_device(device, local_rank if world_size > 1 else None)
    if chosen.type == "cuda":
        # Generators are seeded, memory is pinned and contexts are opened on the current device.
        torch.cuda.set_device(chosen)
    if world_size == 1:
        return Processes(0, 1, chosen)
    # DDP copies the gradients of depthwise kernels, whose one input channel may have any stride.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    try:
        store, rank, world_size = next(rendezvous("env://", timeout=MEETING_WAIT))
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=dist.PrefixStore(agree_on_a_name(store, rank, world_size), store),
            rank=rank,
            world_size=world_size,
            timeout=MEETING_WAIT,
            # NCCL then connects now, not in the first collective, whose wait is two hours.
            device_id=chosen if chosen.type == "cuda" else None,
        )
        # A connection lost while the processes meet must end in minutes, for torchrun to try again;
        # a training waits longer, for the main process to score and draw.
        _set_timeout(LONGEST_WAIT)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"WORLD_SIZE: {world_size} processes are asked for and cannot meet ({reason}); start "
            "them with torchrun or fcmae submit, or unset WORLD_SIZE to train with one."
        ) from error
    return Processes(rank, world_size, chosen)


def agree_on_a_name(store: dist.Store, rank: int, world_size: int) -> str:
    """Return a name for this meeting in `store`, the same in all processes and never used before.

    torchrun starts processes again with the store of those before them, whose addresses there lead
    nowhere; its count of restarts may differ between nodes. So the main process makes a name up and
    tells it to whoever is there until everyone has confirmed it: a process calls itself by a word
    of its own, hence no answer to one that died is taken for an answer to one that lives.
    """
    mine = uuid.uuid4().hex
    if rank > 0:
        store.set(f"caller-{rank}", mine)
        name = store.get(f"name-for-{mine}").decode()  # waits for it
        store.set(f"{name}-{rank}", "")
        return name
    deadline = time.monotonic() + MEETING_WAIT.total_seconds()
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"{mine}-{other}"]):
                missing.remove(other)
            elif store.check([f"caller-{other}"]):
                store.set(f"name-for-{store.get(f'caller-{other}').decode()}", mine)
        if time.monotonic() > deadline:
            raise RuntimeError(f"process {min(missing)} did not come")
        time.sleep(0.05)
    return mine


def _set_timeout(longest: datetime.timedelta) -> None:
    """Let collectives of the default group wait for `longest`; its name is new in torch 2.14."""
    named = getattr(dist, "set_timeout", None)
    (named or dist.distributed_c10d._set_pg_timeout)(longest, dist.group.WORLD)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isascii() or not text.isdigit():
        raise ConfigError(
            f"{name}: the environment says {text!r}, expected a whole number as torchrun sets it; "
            "unset it to train with one process."
        )
    return int(text)


def choose_device(
    device: str, local_rank: int | None = None, *, setting: str = "train.device"
) -> torch.device:
    """Return the torch device that a setting names, which messages call `setting`."""
    has_cuda = torch.cuda.is_available()
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise ConfigError(f"{setting}: got {device!r}, expected auto, cpu, cuda or cuda:N.")
    if kind == "cpu":
        return torch.device("cpu")
    if not has_cuda:
        raise ConfigError(
            f"{setting}: got {device!r}, but torch finds no usable GPU on this machine; "
            "use cpu, or a CUDA build of torch."
        )
    index = local_rank if local_rank is not None else int(number or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"{setting}: GPU {index} is asked for and {torch.cuda.device_count()} are here; "
            "start fewer processes per node, or name another GPU."
        )
    return torch.device("cuda", index)


@dataclass(frozen=True)
class _Place:
    """Where a tensor belongs in a value that travels without it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def _take_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return `value` with a _Place for every tensor, which go to `tensors` in order."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Place(tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _take_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_take_tensors(item, tensors) for item in value)
    return value


def _put_tensors(
    value: Any, mine: Iterator[torch.Tensor], broadcast: Callable[[torch.Tensor], torch.Tensor]
) -> Any:
    """Return `value` with the main process's tensor at every _Place; only there `mine` has any."""
    if isinstance(value, _Place):
        return broadcast(next(mine, torch.empty(value.shape, dtype=value.dtype)))
    if isinstance(value, dict):
        return {key: _put_tensors(item, mine, broadcast) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(_put_tensors(item, mine, broadcast) for item in value)
    return value
