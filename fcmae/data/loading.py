"""Batches from worker processes, in order, with faults of a worker told in one sentence.

Workers are forked on Linux: they start at once and share the list of paths; they run one torch
thread and never touch CUDA, so nothing that fork breaks is used in them.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fcmae.data.decoding import to_float
from fcmae.data.holes import stack_valid
from fcmae.data.parcels import BY_PIPE, Parcel, Sender, obstacle_sentence, patient_context, stack
from fcmae.errors import DataError, descriptor_advice, lacks_descriptors, remark

POLL_SECONDS = 5.0  # how often a waiting loader looks whether its workers live


class Readable(Protocol):
    """What a loader reads: samples for `collate` by key."""

    def __getitem__(self, key: Any) -> dict[str, Any]: ...

    def path_of(self, key: Any) -> str:
        """Return the path of the file that `key` asks for, for messages."""


def make_loader(
    dataset: Readable,
    batches: Iterable[Sequence[Any]],
    workers: int,
    *,
    timeout_seconds: float = 300.0,
    prefetch: int = 2,
    pin_memory: bool = False,
) -> Loader:
    """Return an iterable over the batches of `dataset` whose keys `batches` lists.

    Args:
        dataset: gives the samples.
        batches: keys of each batch, such as `MicroBatches` or `in_order`.
        workers: processes that read; 0 reads in this one.
        timeout_seconds: how long to wait for one batch of a worker.
        prefetch: batches that each worker prepares ahead.
        pin_memory: page-locked tensors, for CUDA.

    Iterating yields what `collate` returns, in the order of `batches`, the same for any number of
    workers, and leaves all global generators alone. It raises DataError when a sample cannot be
    made, when no worker can be started, when one dies, or when none has answered for
    `timeout_seconds`.
    """
    return Loader(dataset, batches, workers, timeout_seconds, prefetch, pin_memory)


class _BatchReader(Dataset[Any]):
    """Whole batches by list of keys; a DataError comes back as a value.

    Raised in a worker it would arrive with the worker's traceback as its message.
    """

    def __init__(self, dataset: Readable) -> None:
        self.dataset = dataset
        self._sender = Sender()

    def __getitem__(self, keys: Sequence[Any]) -> dict[str, Any] | Parcel | str:
        try:
            batch = collate([self.dataset[key] for key in keys])
        except DataError as error:
            return str(error)
        return batch if get_worker_info() is None else self._sender.wrap(batch)


def _batch_or_error(read: Any) -> dict[str, Any]:
    if isinstance(read, str):
        raise DataError(read)
    batch: dict[str, Any] = read
    return batch


def _same(batch: Any) -> Any:
    return batch


class Loader:
    """See `make_loader`. Each iteration starts its own workers and ends them."""

    def __init__(
        self,
        dataset: Readable,
        batches: Iterable[Sequence[Any]],
        workers: int,
        timeout_seconds: float,
        prefetch: int,
        pin_memory: bool,
    ) -> None:
        self.dataset = dataset
        self.batches = batches
        self.workers = workers
        self.timeout_seconds = timeout_seconds
        self.prefetch = prefetch
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        reader = _BatchReader(self.dataset)
        if self.workers == 0:
            yield from map(_batch_or_error, map(reader.__getitem__, self.batches))
        else:
            yield from self._read_by_workers(reader)

    def _read_by_workers(self, reader: _BatchReader) -> Iterator[dict[str, Any]]:
        """Yield what the workers read; end them in any case."""
        awaited: collections.deque[Sequence[Any]] = collections.deque()

        def keys() -> Iterator[Sequence[Any]]:
            for batch in self.batches:
                awaited.append(batch)
                yield batch

        others, is_told = set(multiprocessing.active_children()), False
        try:
            iterator = self._start(reader, keys())
        except OSError as error:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            _forget(error)
            raise DataError(_not_started(error, self.workers)) from error
        processes = [p for p in multiprocessing.active_children() if p not in others]
        processes.sort(key=lambda process: process.pid or 0)
        try:
            started = time.monotonic()
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                # A worker killed while it sends a batch breaks the connection: EOFError or OSError.
                except (RuntimeError, EOFError, OSError) as error:
                    self._explain(error, processes, awaited[0] if awaited else (), started)
                    continue
                awaited.popleft()
                batch = _batch_or_error(batch)
                obstacle = batch.pop(BY_PIPE, None)
                if obstacle is not None and not is_told:
                    is_told = True
                    remark(obstacle_sentence(obstacle))
                yield batch
                started = time.monotonic()
        except Exception:
            for process in processes:  # a stuck one would not end when asked
                process.kill()
            raise
        finally:
            del iterator

    def _start(self, reader: _BatchReader, keys: Iterator[Sequence[Any]]) -> Iterator[Any]:
        """Start the workers and leave this process's handling of signals as it was.

        torch's handler of SIGCHLD would raise from whatever line runs when a worker dies; the
        polling loader sees it too, and raises where batches are fetched.
        """
        is_main = threading.current_thread() is threading.main_thread()
        child = getattr(signal, "SIGCHLD", None)
        handler = signal.getsignal(child) if is_main and child is not None else None
        try:
            with warnings.catch_warnings(), _stop_signals_blocked():
                # Newer Pythons warn of fork beside threads; see the top of this file.
                warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
                warnings.filterwarnings("ignore", "This DataLoader will create")  # fewer cores
                loader: DataLoader[Any] = DataLoader(
                    reader,
                    batch_size=None,  # keys lists whole batches
                    sampler=keys,
                    num_workers=self.workers,
                    collate_fn=_same,
                    timeout=min(POLL_SECONDS, self.timeout_seconds),
                    prefetch_factor=self.prefetch,
                    pin_memory=self.pin_memory,
                    worker_init_fn=_start_worker,
                    multiprocessing_context=patient_context(
                        "fork" if sys.platform == "linux" else None
                    ),
                    generator=torch.Generator(),  # else the loader draws from the global one
                )
                return iter(loader)
        finally:
            if child is not None and handler is not None:
                signal.signal(child, handler)

    def _explain(
        self,
        error: RuntimeError | EOFError | OSError,
        processes: list[Any],
        keys: Sequence[Any],
        started: float,
    ) -> None:
        """Raise DataError for a dead worker or a late batch; return to wait on; else re-raise."""
        paths = [repr(self.dataset.path_of(key)) for key in keys]
        batch = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        if not isinstance(error, RuntimeError):  # the connection breaks before the system says why
            sentinels = [process.sentinel for process in processes]
            ending = multiprocessing.connection.wait(sentinels, POLL_SECONDS)
            for process in processes:
                if process.sentinel in ending:
                    process.join()  # it may still be closing its files
        for number, process in enumerate(processes):
            if process.exitcode is not None:
                raise DataError(
                    f"data.workers: worker {number} of {len(processes)} (process {process.pid}) "
                    f"{_death(process.exitcode)} The next batch was {batch}."
                ) from error
        if lacks_descriptors(error):
            raise DataError(
                f"data.workers: too many files are open to take a batch from a reader; "
                f"{descriptor_advice()}, or use fewer workers. The next batch was {batch}."
            ) from error
        if "DataLoader timed out" not in str(error):
            raise error
        if time.monotonic() - started >= self.timeout_seconds:
            raise DataError(
                f"data.workers: no batch for {self.timeout_seconds:g} s, a reader is stuck; the "
                f"batch that is late holds {batch}. Look whether their disk or network answers."
            ) from error


def _start_worker(worker: int) -> None:
    """Set up this worker; see `_stop_signals_blocked` for the thread."""
    torch.set_num_threads(1)
    sys.excepthook = _tell_unless_told
    started_by = multiprocessing.parent_process()
    if hasattr(signal, "sigtimedwait") and started_by is not None:
        threading.Thread(target=_end_with_parent, args=(started_by.pid,), daemon=True).start()


def _tell_unless_told(
    kind: type[BaseException], error: BaseException, trace: types.TracebackType | None
) -> None:
    """Print an error of one of the worker's threads, if the process that waits does not tell it."""
    if not lacks_descriptors(error):
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Workers forked inside never see signals that ask the run to stop; this process later.

    Terminals and schedulers send them to every process, but the main process decides what they
    mean. SIGTERM from the parent, its way to end a worker, is heard by a thread of the worker.
    """
    if not hasattr(signal, "sigtimedwait"):
        yield
        return
    names = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, names)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(parent: int) -> None:
    """End this worker when its parent says so, or was killed and can say nothing.

    torch's own watch on the parent is not enough: a worker that ends flushes its queue first, and
    waits for ever for a reader of batches that do not fit into the pipe.
    """
    while os.getppid() == parent:
        heard = signal.sigtimedwait({signal.SIGTERM}, POLL_SECONDS)
        if heard is not None and heard.si_pid == parent:
            break
    os._exit(0)


def _not_started(error: OSError, workers: int) -> str:
    """Say why no reader could be started, and what to change."""
    change = {
        errno.ENOSPC: "give a container more /dev/shm (docker run --shm-size=1g)",
        errno.EAGAIN: "allow more processes (ulimit -u)",
        errno.ENOMEM: "free memory",
    }.get(error.errno or 0, "see to it that /dev/shm is there and may be written")
    if lacks_descriptors(error):
        change = descriptor_advice()
    return (
        f"data.workers: {workers} readers cannot be started ({error.strerror or error}); {change}, "
        "or use fewer; with 0, images are read by the process that computes."
    )


def _forget(error: OSError) -> None:
    """Free the iterator that could not be made, which prints that it lacks half of its parts."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _death(exitcode: int) -> str:
    """Say how a process ended and what is most likely behind it."""
    if exitcode >= 0:
        return f"ended with status {exitcode}."
    name = signal.Signals(-exitcode).name
    hint = {
        "SIGKILL": " Most often the system lacked memory: use fewer data.workers.",
        "SIGBUS": " Most often /dev/shm is full: use fewer data.workers or smaller batches, or "
        "give the container more (docker run --shm-size).",
        "SIGSEGV": " A decoder crashed on one of the files.",
    }.get(name, "")
    return f"was killed by {name}.{hint}"


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make one batch of N samples, leaving out those that are not usable (N may become 0).

    Returns a dict of image [N, C, H, W] (float32 where one of them is), label and index
    LongTensor [N], path list of N, visible LongTensor [N, K] for pretraining, mask int16 [N, H, W]
    for segmentation, valid bool [N, 1, H, W] where an image has holes, and skipped: the
    (path, reason) of all samples.
    """
    usable = [sample for sample in samples if sample.get("is_usable", True)]
    batch: dict[str, Any] = {
        "label": torch.tensor([sample["label"] for sample in usable], dtype=torch.long),
        "index": torch.tensor([sample["index"] for sample in usable], dtype=torch.long),
        "path": [sample["path"] for sample in usable],
        "skipped": [problem for sample in samples for problem in sample["skipped"]],
    }
    for name in ("image", "visible", "mask"):
        if name in samples[0]:
            tensors = [sample[name] for sample in usable]
            if len({tensor.dtype for tensor in tensors}) > 1:  # 8-bit files among finer ones
                tensors = [to_float(tensor) for tensor in tensors]
            batch[name] = stack(tensors) if tensors else samples[0][name][None][:0]
    valid = stack_valid([sample.get("valid") for sample in usable])
    return batch if valid is None else {**batch, "valid": valid}
