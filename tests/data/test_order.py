"""Seeds derived from keys, and the stream of samples."""

import itertools
import random

import numpy as np
import pytest
import torch

from fcmae.data import MicroBatches, SampleStream, in_order, sample_seed, seeded
from fcmae.randomness import torch_seeded


def test_sample_seed_is_the_same_in_every_process() -> None:
    # Python's own hash would differ from run to run.
    assert sample_seed(0, "order", 0) == 6611817210625174135
    assert sample_seed(7, "mask", 2, "\u00e4\udcff") == 3615406176061094192


def test_sample_seed_tells_all_keys_apart() -> None:
    keys: list[tuple[int | str, ...]] = [(1, 2), (2, 1), (12,), ("1", 2), ("1", "2"), ("12",), ()]
    seeds = [sample_seed(0, *key) for key in keys] + [sample_seed(1, *keys[0])]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(0, int(np.int64(5))) == sample_seed(0, np.int64(5))  # type: ignore[arg-type]


def _draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeded_repeats_its_draws_and_restores_all_generators() -> None:
    with seeded(3):
        outer = _draw()
        with seeded(2**63 - 1):
            inner = _draw()
        after = _draw()
    with seeded(2**63 - 1):
        assert _draw() == inner
    with seeded(3):
        assert (_draw(), _draw()) == (outer, after)


def test_seeded_restores_after_an_error() -> None:
    with seeded(5):
        expected = _draw()
    with seeded(5):
        with pytest.raises(KeyError), seeded(6):
            raise KeyError
        assert _draw() == expected


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own() -> None:
    keys = SampleStream(7, seed=1, effective_batch=3).samples(0, 21)
    epochs = [[index for epoch, index in keys if epoch == number] for number in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert keys == sorted(keys, key=lambda key: key[0])


def test_steps_flow_over_the_border_of_epochs_without_partial_batches() -> None:
    stream = SampleStream(7, seed=1, effective_batch=5)
    assert [epoch for epoch, _ in stream.samples_of_step(1)] == [0, 0, 1, 1, 1]
    steps = [stream.samples_of_step(step) for step in range(7)]
    assert list(itertools.chain(*steps)) == stream.samples(0, 35)


def test_a_batch_larger_than_the_set_spans_several_epochs() -> None:
    keys = SampleStream(2, seed=1, effective_batch=5).samples_of_step(0)
    assert [epoch for epoch, _ in keys] == [0, 0, 1, 1, 2]


def test_steps_do_not_depend_on_what_was_asked_before() -> None:
    stream, fresh = (SampleStream(5, seed=2, effective_batch=4) for _ in range(2))
    for step in (9, 0, 4):
        stream.samples_of_step(step)
    assert stream.samples_of_step(7) == fresh.samples_of_step(7)
    assert fresh.samples_of_step(7) != SampleStream(5, 3, 4).samples_of_step(7)


@pytest.mark.parametrize(("micro", "accumulate", "world"), [(12, 1, 1), (3, 4, 1), (3, 2, 2)])
def test_micro_batches_of_all_processes_are_the_step_however_it_is_split(
    micro: int, accumulate: int, world: int
) -> None:
    stream = SampleStream(17, seed=4, effective_batch=12)
    ranks = [
        list(MicroBatches(stream, 3, 6, micro, accumulate, rank, world)) for rank in range(world)
    ]
    for number, step in enumerate(range(3, 6)):
        parts = [
            ranks[rank][number * accumulate + micro_step]
            for micro_step in range(accumulate)
            for rank in range(world)
        ]
        assert all(len(part) == micro for part in parts)
        assert list(itertools.chain(*parts)) == stream.samples_of_step(step)
    assert all(len(rank) == 3 * accumulate for rank in ranks)
    assert len(MicroBatches(stream, 3, 6, micro, accumulate, 0, world)) == 3 * accumulate


def test_arguments_that_contradict_the_stream_are_refused() -> None:
    stream = SampleStream(17, seed=4, effective_batch=12)
    with pytest.raises(ValueError, match=r"5 images x 2 micro-batches x 1 processes is not .* 12"):
        MicroBatches(stream, 0, 1, 5, 2)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        MicroBatches(stream, 0, 1, 6, 1, 2, 2)
    with pytest.raises(ValueError, match=r"num_samples \(0\) .* must be >= 1"):
        SampleStream(0, seed=4, effective_batch=12)


def test_in_order_visits_all_once_and_ends_with_what_is_left() -> None:
    assert [list(batch) for batch in in_order(5, 2)] == [[0, 1], [2, 3], [4]]


def test_a_name_of_a_file_draws_the_same_under_every_locale() -> None:
    assert sample_seed(3, "\u00e9t\u00e9") == sample_seed(3, "\udcc3\udca9t\udcc3\udca9")
    assert sample_seed(3, "\udce9") != sample_seed(3, "\u00e9")


def test_torchs_generator_alone_is_seeded_as_with_all_and_restored() -> None:
    before = torch.get_rng_state()
    with seeded(7):
        expected = torch.rand(5)
    with torch_seeded(7):
        found = torch.rand(5)
    assert torch.equal(found, expected)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), torch_seeded(7):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
