"""Measures all that BenchSettings asks for, group by group."""

import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fcmae.errors import DataError
from fcmae.machine.bench import authors
from fcmae.machine.bench.roofline import counted_flops, matmul_rates
from fcmae.machine.bench.subjects import ALTERNATIVES, Subject, prepare
from fcmae.machine.bench.timing import Times, time_in_turns
from fcmae.machine.memory import call_alone, growth_bytes
from fcmae.settings.bench import BenchSettings
from fcmae.settings.sections import Compiling

STEPS = 2  # of which memory is measured: the optimizer's state appears in the first


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one subject.

    Attributes:
        subject: what was measured.
        times: seconds of each round.
        versus: time over that of masked_dense at the same ratio, or, for a training step, of the
            dense model or the authors' code; None without such a partner.
        partner: who that is.
        peak_bytes: growth of memory in the step; None if not measured.
        flops: counted operations of the encoder or the step; None for alternatives.
    """

    subject: Subject
    times: Times
    versus: float | None = None
    partner: str | None = None
    peak_bytes: int | None = None
    flops: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images of the batch over the median time."""
        return self.subject.batch_size / self.times.median


def measure(
    settings: BenchSettings, device: torch.device, tell: Callable[[str], None] = print
) -> tuple[list[Measurement], dict[str, dict[str, float]]]:
    """Return all measurements, and the rates of matrix products by precision."""
    rates: dict[str, dict[str, float]] = {
        name: matmul_rates(device, name) for name in settings.precisions
    }
    results: list[Measurement] = []
    for subjects in compared_groups(settings):
        first = subjects[0]
        tell(f"{first.model}, {first.precision}, {first.part}: {len(subjects)} contenders ...")
        works = [prepare(subject, device) for subject in subjects]
        times = dict(zip(subjects, time_in_turns(works, settings.repeats, device), strict=True))
        del works  # before the next group's models are made
        gc.collect()  # an optimizer is part of cycles
        for subject in subjects:
            partner = partner_of(subject, subjects)
            with_memory = settings.memory and subject.part not in ("forward", "evaluation")
            results.append(
                Measurement(
                    subject=subject,
                    times=times[subject],
                    versus=times[subject].ratio(times[partner]) if partner else None,
                    partner=partner.contender if partner else None,
                    peak_bytes=peak_memory(subject, device) if with_memory else None,
                    flops=None if subject.contender in ALTERNATIVES else counted_flops(subject),
                )
            )
    return results, rates


def peak_memory(subject: Subject, device: torch.device) -> int | None:
    """Return how much a process of its own grows beyond its model and inputs, in bytes.

    None where the system does not tell.

    Raises:
        DataError: that process failed.
    """
    request = {"subject": dataclasses.asdict(subject), "device": str(device)}
    try:
        found: int | None = call_alone(measure_growth, request)
    except ChildProcessError as error:
        status, said = error.args
        raise DataError(
            f"bench: the memory of {subject.model} ({subject.contender}) could not be measured "
            f"(exit status {status}): {said}"
        ) from error
    return found


def measure_growth(request: dict[str, Any]) -> int | None:
    """Be the process that `peak_memory` asks."""
    device = torch.device(request["device"])
    work = prepare(Subject(**request["subject"]), device)
    return growth_bytes(lambda: [work() for _ in range(STEPS)], device)


def compared_groups(settings: BenchSettings) -> Iterator[list[Subject]]:
    """Subjects that are compared with each other and take turns."""
    modes: list[Compiling] = [False, settings.compile] if settings.compile else [False]
    for model, precision, part in itertools.product(
        settings.models, settings.precisions, settings.parts
    ):
        contenders: list[tuple[str, float]] = list(
            itertools.product(settings.backends, settings.ratios)
        )
        if part == "evaluation":  # nothing is hidden
            contenders = [("native", 0.0), ("dense", 0.0)]
        folder = settings.against[1] if settings.against else ""
        if folder:
            contenders += [(authors.NAME, ratio) for ratio in settings.ratios]
        elif part == "step":
            contenders += [("vit_mae", ratio) for ratio in settings.ratios] + [("dense", 0.0)]
        yield [
            Subject(
                model=model,
                contender=contender,
                ratio=ratio,
                precision=precision,
                part=part,
                batch_size=batch_size,
                image_size=image_size,
                compiling=mode,
                threads=threads,
                folder=folder if contender == authors.NAME else "",
            )
            for batch_size, image_size, threads in settings.sizes
            for mode in modes
            for contender, ratio in contenders
            if not (mode and contender in ("minkowski", authors.NAME))
            if not (mode and part == "evaluation")
        ]


def partner_of(subject: Subject, subjects: list[Subject]) -> Subject | None:
    """Whom a subject is compared with: equally compiled, of the same sizes and ratio."""
    for other in subjects:
        alike = dataclasses.replace(other, contender=subject.contender, folder="")
        if other.contender == authors.NAME and alike == subject:
            return other
    name = "dense" if subject.part in ("step", "evaluation") else "masked_dense"
    ratio = 0.0 if name == "dense" else subject.ratio
    wanted = dataclasses.replace(subject, contender=name, ratio=ratio, is_on_canvas=False)
    return wanted if wanted in subjects and wanted != subject else None
