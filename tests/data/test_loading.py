"""Workers change nothing but the time; what goes wrong in one is told in one sentence."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fork_server import PATIENCE_SECONDS
from PIL import Image

from fcmae.data import (
    ImageList,
    MicroBatches,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    SampleStream,
    find_images,
    in_order,
    loading,
    make_loader,
)
from fcmae.errors import DataError


@pytest.fixture
def dataset(tmp_path: Path) -> PretrainDataset:
    """Nine pictures of which two are broken."""
    rng = np.random.default_rng(0)
    for number in range(9):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    for number in (2, 5):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    return make_dataset(find_images(str(tmp_path)))


def make_dataset(images: ImageList, kind: type[PretrainDataset] = PretrainDataset) -> Any:
    augmentation = PretrainAugmentation((32, 32))
    return kind(
        images, augmentation, seed=3, reading=Reading(in_chans=3), num_patches=4, mask_ratio=0.6
    )


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    yield
    deadline = time.monotonic() + PATIENCE_SECONDS
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert multiprocessing.active_children() == []


def assert_same(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    assert len(first) == len(second)
    for batch, other in zip(first, second, strict=True):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            same = torch.equal(value, other[name]) if name in TENSORS else value == other[name]
            assert same, name


TENSORS = ("image", "visible", "label", "index")


def test_any_number_of_workers_gives_the_same_batches(dataset: PretrainDataset) -> None:
    batches = MicroBatches(SampleStream(9, seed=3, effective_batch=4), 1, 7, 2, 2)
    loaded = [list(make_loader(dataset, batches, workers)) for workers in (0, 1, 3)]
    assert_same(loaded[0], loaded[1])
    assert_same(loaded[0], loaded[2])
    assert len(loaded[0]) == len(make_loader(dataset, batches, 2)) == 12
    assert sum(len(batch["skipped"]) for batch in loaded[0]) >= 4


def test_starting_in_the_middle_gives_the_rest(dataset: PretrainDataset) -> None:
    stream = SampleStream(9, seed=3, effective_batch=4)
    whole = list(make_loader(dataset, MicroBatches(stream, 0, 6, 4), 0))
    rest = list(make_loader(dataset, MicroBatches(stream, 4, 6, 4), 2))
    assert_same(whole[4:], rest)


def test_the_order_of_keys_changes_no_sample(dataset: PretrainDataset) -> None:
    keys = [(epoch, index) for epoch in (0, 1) for index in range(9)]
    shuffled = random.Random(0).sample(keys, len(keys))
    plain, mixed = (
        dict(zip(order, make_loader(dataset, [[key] for key in order], workers), strict=True))
        for order, workers in ((keys, 0), (shuffled, 2))
    )
    for key in keys:
        assert_same([plain[key]], [mixed[key]])


def test_loading_leaves_global_generators_and_signals_alone(dataset: PretrainDataset) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    handler = signal.getsignal(signal.SIGCHLD)
    list(make_loader(dataset, [[(0, 0)]], 2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert signal.getsignal(signal.SIGCHLD) is handler


def test_leaving_early_ends_the_workers(dataset: PretrainDataset) -> None:
    for batch in make_loader(dataset, [[(epoch, 0)] for epoch in range(50)], 2):
        assert batch["image"].shape[0] == 1
        break


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_made_is_one_sentence(workers: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    dataset = make_dataset(find_images(str(tmp_path)))
    with pytest.raises(DataError, match="images in a row cannot be used") as caught:
        list(make_loader(dataset, [[(0, 0)]], workers))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


class Mishap(PretrainDataset):
    """Does what the index says: 0 nothing, 1 is killed, 2 hangs, 3 has a bug, 4 exits."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        what = key[1]
        if what == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == 2:
            time.sleep(2 * PATIENCE_SECONDS)
        if what == 3:
            raise KeyError("a bug")
        if what == 4:
            os._exit(3)
        return super().__getitem__(key)


@pytest.fixture
def mishap(dataset: PretrainDataset, monkeypatch: pytest.MonkeyPatch) -> Mishap:
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.2)
    result: Mishap = make_dataset(dataset.images, Mishap)
    return result


def test_a_killed_worker_is_an_error_that_names_it(mishap: Mishap) -> None:
    message = (
        r"worker 1 of 2 \(process \d+\) was killed by SIGKILL\. .*memory.*fewer data\.workers"
        r".* next batch was '.*1\.png', '.*0\.png'\."
    )
    batches = iter(make_loader(mishap, [[(0, 0)], [(0, 1), (0, 0)], [(0, 0)]], 2))
    next(batches)
    time.sleep(0.3)  # the death must not surface here
    with pytest.raises(DataError, match=message):
        next(batches)


def first_of(iterator: Iterator[Any]) -> Any:
    """Return what torch's loader yields first, however often it times out on a busy machine."""
    while True:
        with contextlib.suppress(RuntimeError):
            return next(iterator)


@pytest.mark.parametrize("broken", [EOFError(), ConnectionResetError(104, "reset by peer")])
def test_a_worker_killed_while_it_sends_a_batch_is_named_too(
    mishap: Mishap, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    def fetching(iterator: Iterator[Any]) -> Iterator[Any]:
        yield first_of(iterator)
        if kill:
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
        raise broken

    class Breaking(loading.DataLoader):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return fetching(super().__iter__())  # which starts the workers at once

    monkeypatch.setattr(loading, "DataLoader", Breaking)
    for kill, expected in ((True, DataError), (False, type(broken))):
        batches = iter(make_loader(mishap, [[(0, 0)], [(0, 0)]], 1))
        next(batches)
        with pytest.raises(expected, match="killed by SIGKILL" if kill else None):
            next(batches)


class Wide(PretrainDataset):
    """Samples of which two fill a pipe; a key's index is 1 where the worker is killed."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        if key[1] == 1:
            time.sleep(0.5)  # until the thread that sends cannot go on
            os.kill(os.getpid(), signal.SIGKILL)
        image = torch.zeros(60_000, dtype=torch.uint8)
        return {"image": image, "label": 0, "index": key[0], "path": "wide", "skipped": ()}


def test_a_worker_killed_in_the_midst_of_a_batch_is_named_and_nothing_waits_for_the_rest(
    dataset: PretrainDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "POLL_SECONDS", 0.2)
    wide = make_dataset(dataset.images, Wide)
    keys = [[(0, 0)], [(1, 0)], [(2, 0)], [(3, 1)]]
    batches = iter(make_loader(wide, keys, 1, prefetch=3))
    assert next(batches)["index"].tolist() == [0]
    time.sleep(2.0)  # the second batch lies in the pipe, of the third there is only a part
    assert next(batches)["index"].tolist() == [1]
    with pytest.raises(DataError, match=r"worker 0 of 1 .* killed by SIGKILL"):
        next(batches)


def test_a_worker_that_exits_is_named_with_its_status(mishap: Mishap) -> None:
    with pytest.raises(DataError, match=r"worker 0 of 1 .* ended with status 3\."):
        list(make_loader(mishap, [[(0, 4)]], 1))


def test_a_stuck_reader_is_reported_with_its_files(mishap: Mishap) -> None:
    keys = [(0, 2), (0, 0), (0, 6), (0, 7)]
    message = r"no batch for 0\.5 s.* holds '.*2\.png', '.*0\.png', '.*6\.png' and 1 more\."
    with pytest.raises(DataError, match=message):
        list(make_loader(mishap, [keys, [(0, 0)]], 2, timeout_seconds=0.5))


def test_a_slow_consumer_is_no_stuck_reader(
    mishap: Mishap, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, batches = 0.0, 0
    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + late)
    monkeypatch.setattr(loading, "time", clock)
    for _ in make_loader(mishap, [[(0, 0)]] * 4, 1, timeout_seconds=PATIENCE_SECONDS):
        late += 2 * PATIENCE_SECONDS
        batches += 1
    assert batches == 4


def test_a_bug_in_a_worker_keeps_its_traceback(mishap: Mishap) -> None:
    with pytest.raises(KeyError, match=r"(?s)Caught KeyError in DataLoader worker.*a bug"):
        list(make_loader(mishap, [[(0, 3)]], 1))


def test_signals_that_stop_a_run_do_not_stop_its_workers(dataset: PretrainDataset) -> None:
    batches = iter(make_loader(dataset, [[(epoch, 0)] for epoch in range(30)], 2))
    received = [next(batches), next(batches)]  # now both workers have started
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
            # From another process: SIGTERM of the parent is the loader's own way to end them.
            subprocess.run(["kill", f"-{number.value}", str(worker.pid)], check=True)
    received += batches
    assert len(received) == 30
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_stuck_worker_ends_when_its_parent_asks(mishap: Mishap) -> None:
    batches = iter(make_loader(mishap, [[(0, 0)], [(0, 2)]], 1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(timeout=PATIENCE_SECONDS)
    assert worker.exitcode == 0
    with pytest.raises(DataError, match=r"worker 0 of 1 .* ended with status 0"):
        next(batches)


def test_in_order_keys_and_evaluation_work_with_workers(tmp_path: Path) -> None:
    from fcmae.data import EvaluationDataset, EvaluationTransform

    for number in range(5):
        Image.new("L", (40, 40), number * 50).save(tmp_path / f"{number}.png")
    transform = EvaluationTransform((32, 32), mean=(0.0,), std=(1.0,))
    dataset = EvaluationDataset(find_images(str(tmp_path)), transform, reading=Reading(in_chans=1))
    loaded = list(make_loader(dataset, in_order(5, 2), 2))
    assert [batch["index"].tolist() for batch in loaded] == [[0, 1], [2, 3], [4]]
    brightness = torch.cat([batch["image"].mean((1, 2, 3)) for batch in loaded]) * 255
    torch.testing.assert_close(brightness, torch.arange(5) * 50.0)
