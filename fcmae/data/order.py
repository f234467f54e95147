"""Which sample stands where: one endless stream of samples, cut into steps and micro-batches.

Pure arithmetic on (seed, position), so that a run can start anywhere and be split in any way.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from fcmae.randomness import sample_seed


class SampleStream:
    """All epochs, each in an order of its own, one behind the other.

    Position p holds sample `permutation(epoch)[p % num_samples]` of epoch `p // num_samples`;
    step s holds positions `s * effective_batch` and on. Batches flow over the border of epochs,
    so none is partial.
    """

    def __init__(self, num_samples: int, seed: int, effective_batch: int) -> None:
        if num_samples < 1 or effective_batch < 1:
            raise ValueError(
                f"num_samples ({num_samples}) and effective_batch ({effective_batch}) must be >= 1"
            )
        self.num_samples = num_samples
        self.seed = seed
        self.effective_batch = effective_batch
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def permutation(self, epoch: int) -> Tensor:
        """Return the order of the samples in `epoch`, LongTensor [num_samples]; keeps the last."""
        if epoch != self._epoch:
            rng = torch.Generator().manual_seed(sample_seed(self.seed, "order", epoch))
            self._epoch, self._order = epoch, torch.randperm(self.num_samples, generator=rng)
        return self._order

    def samples(self, position: int, count: int) -> list[tuple[int, int]]:
        """Return the (epoch, index) keys at `position` and the `count - 1` places behind it."""
        keys: list[tuple[int, int]] = []
        while count > 0:
            epoch, start = divmod(position, self.num_samples)
            indices = self.permutation(epoch)[start : start + count].tolist()
            keys += [(epoch, index) for index in indices]
            position, count = position + len(indices), count - len(indices)
        return keys

    def samples_of_step(self, step: int) -> list[tuple[int, int]]:
        """Return the `effective_batch` keys (epoch, index) of 0-based `step`."""
        return self.samples(step * self.effective_batch, self.effective_batch)


class MicroBatches(Sampler[list[tuple[int, int]]]):
    """The micro-batches of one process for steps `start_step` to `stop_step` (exclusive).

    Micro-batch m of process `rank` at step s holds `micro_batch` positions from
    `s * effective_batch + (m * world_size + rank) * micro_batch`; all of them together are the
    step's samples however the work is split. Yields lists of (epoch, index).
    """

    def __init__(
        self,
        stream: SampleStream,
        start_step: int,
        stop_step: int,
        micro_batch: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if micro_batch * accumulate * world_size != stream.effective_batch:
            raise ValueError(
                f"{micro_batch} images x {accumulate} micro-batches x {world_size} processes is "
                f"not the stream's effective batch of {stream.effective_batch} images"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not one of {world_size} processes")
        self.stream = stream
        self.steps = range(start_step, stop_step)
        self.micro_batch = micro_batch
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            first = step * self.stream.effective_batch
            for micro_step in range(self.accumulate):
                slot = micro_step * self.world_size + self.rank
                yield self.stream.samples(first + slot * self.micro_batch, self.micro_batch)


def in_order(num_samples: int, batch_size: int) -> list[range]:
    """Return batches of the indices 0, 1, ... for one pass, the last as long as what is left."""
    starts = range(0, num_samples, batch_size)
    return [range(start, min(start + batch_size, num_samples)) for start in starts]
