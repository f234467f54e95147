"""A plan in words, and what it advises."""

import math
from collections.abc import Iterator

from fcmae.machine.plan.planning import NAMES, Plan
from fcmae.pretraining.recipe import remarks

SLOW_READERS = 0.9  # readers below this share of the steps' rate hold them up
TIGHT = 0.85  # share of the free memory from which a run is at risk
NOTABLE = 0.1  # share of the whole time that looking at the run should stay below
LONG_LOSS_MINUTES = 30.0  # of work that a kill may cost


def describe(plan: Plan) -> str:
    """Return the plan as a table and sentences."""
    config = plan.config
    width = max(len(part.name) for part in plan.parts)
    lines = [
        f"{config.model.name}, {plan.num_images} images, {plan.total_steps} steps of "
        f"{plan.effective_batch} on {plan.device} ({plan.cores} cores):",
        "",
    ]
    lines += [
        f"  {part.name:<{width}}  {part.times:>7} x {duration(part.seconds):>10}  "
        f"= {duration(part.total):>12}"
        for part in plan.parts
    ]
    lines += [
        f"  {'whole run':<{width}}  {'':>7}   {'':>10}  = {duration(plan.seconds):>12}",
        "",
        f"An epoch takes {duration(plan.epoch_seconds)}: {plan.rate:.1f} images/s. {_rates(plan)}",
        _memory(plan),
    ]
    advice = list(advise(plan))
    lines += ["", "What to change:" if advice else "Nothing needs to change."]
    lines += [f"- {sentence}" for sentence in advice]
    return "\n".join(lines)


def advise(plan: Plan) -> Iterator[str]:
    """Yield what to change, each with its reason."""
    config, total = plan.config, plan.seconds
    if plan.is_busy:
        yield (
            "Measure again when the machine is idle: other work took its cores, so that the times "
            "above are too long."
        )
    yield from _advise_on_readers(plan)
    yield from _advise_on_memory(plan)
    if config.model.backend != "native":
        yield f"Set model.backend native: {config.model.backend} is there for comparison."
    if plan.device.startswith("cuda") and config.train.precision == "fp32":
        yield "Set train.precision bf16: GPUs compute faster in it and it takes less memory."
    if plan.device == "cpu" and plan.threads < plan.cores:
        yield (
            f"Set OMP_NUM_THREADS to {plan.cores}: torch uses {plan.threads} of the "
            f"{plan.cores} cores."
        )
    seconds = {part.name: part.total for part in plan.parts}
    for name, setting in (
        ("picture", "log.pictures_every_steps"),
        ("knn", "evaluate.every_steps"),
        ("checkpoint", "checkpoint.every_steps"),
    ):
        share = seconds.get(NAMES[name], 0.0) / total
        if share > NOTABLE:
            yield f"Raise {setting}: {NAMES[name]} take {100 * share:.0f} % of the whole time."
    share = seconds.get(NAMES["health"], 0.0) / total
    if share > NOTABLE:
        yield (
            "Lower health.images or health.checks: health checks take "
            f"{100 * share:.0f} % of the whole time."
        )
    yield from _advise_on_checkpoints(plan)
    for remark in remarks(config, plan.num_images, plan.effective_batch):
        yield remark[0].upper() + remark[1:]


def _advise_on_readers(plan: Plan) -> Iterator[str]:
    workers = plan.config.data.workers
    if plan.read_rate < SLOW_READERS * plan.compute_rate:
        enough = math.ceil(max(1, workers) * plan.compute_rate / plan.read_rate)
        spare = plan.cores - (plan.threads if plan.device == "cpu" else 1)
        if plan.device != "cpu" and max(1, workers) < spare:
            yield (
                f"Set data.workers to {min(enough, spare)}: {_readers(workers)} "
                f"{plan.read_rate:.0f} images/s and the steps could take {plan.compute_rate:.0f}."
            )
        else:
            yield (
                f"Set data.cache to a folder, or shrink the files once: {_readers(workers)} "
                f"{plan.read_rate:.0f} images/s, the steps could take {plan.compute_rate:.0f}, "
                f"and the {plan.cores} cores are taken."
            )
    elif workers == 0 and plan.cores > 1:
        yield (
            "Set data.workers to 1: reading in the training process makes every step wait for it."
        )
    elif workers > 1 and plan.device == "cpu" and workers + plan.threads > plan.cores + 1:
        yield (
            f"Set data.workers to 1: {workers} readers and {plan.threads} computing threads share "
            f"{plan.cores} cores, and reading is not what holds the steps up."
        )


def _advise_on_memory(plan: Plan) -> Iterator[str]:
    train = plan.config.train
    if plan.taken_bytes > TIGHT * plan.free_bytes:
        fits = plan.largest_batch or 1
        less = max(1, min(train.batch_size // 2, fits))
        yield (
            f"Set train.batch_size to {less} and train.accumulate to "
            f"{math.ceil(train.batch_size * train.accumulate / less)}, or "
            f"model.checkpoint_activations true: the run takes {size(plan.taken_bytes)} of "
            f"{size(plan.free_bytes)} that are free."
        )
    elif train.accumulate > 1 and (plan.largest_batch or 0) >= train.batch_size * train.accumulate:
        yield (
            f"Set train.batch_size to {train.batch_size * train.accumulate} and train.accumulate "
            "to 1: the whole batch fits into the memory at once."
        )
    elif plan.config.model.checkpoint_activations and plan.taken_bytes < plan.free_bytes / 3:
        yield (
            "Set model.checkpoint_activations false: it costs time, and there is memory to spare."
        )


def _advise_on_checkpoints(plan: Plan) -> Iterator[str]:
    checkpoint = plan.config.checkpoint
    steps = checkpoint.every_steps or plan.total_steps
    lost = min(steps, plan.total_steps) * plan.parts[0].seconds / 60
    if checkpoint.every_minutes is None and lost > LONG_LOSS_MINUTES:
        yield (
            f"Set checkpoint.every_minutes to {LONG_LOSS_MINUTES:g}: a kill would cost up to "
            f"{duration(60 * lost)} of work."
        )


def _rates(plan: Plan) -> str:
    readers = _readers(plan.config.data.workers)
    alone = f"Alone, {readers} {plan.read_rate:.1f} and the steps take {plan.compute_rate:.1f}: "
    if plan.read_rate < SLOW_READERS * plan.compute_rate:
        return f"{alone}reading holds the run up."
    return f"{alone}computing sets the pace."


def _readers(workers: int) -> str:
    if workers == 0:
        return "reading in the training process gives"
    return "1 reader gives" if workers == 1 else f"{workers} readers give"


def _memory(plan: Plan) -> str:
    words = f"Peak memory {size(plan.memory_bytes)} in the training process"
    if plan.reader_bytes:
        words += f" and {size(plan.reader_bytes)} in its readers"
    if plan.device_bytes is not None:
        words += f", {size(plan.device_bytes)} on the GPU"
    words += f"; {size(plan.free_bytes)} were free on the {plan.device.partition(':')[0]}."
    if plan.largest_batch is not None:
        words += f" Up to about {plan.largest_batch} images at a time should fit."
    return words


def size(num_bytes: float) -> str:
    """Return bytes in words: 1.5 GiB."""
    gib = num_bytes / 2**30
    return f"{gib:.2f} GiB" if gib < 10 else f"{gib:.0f} GiB"


def duration(seconds: float) -> str:
    """Return a time in words: 0.85 s, 7 min 3 s, 5 h 20 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    for large, small, unit, rest in ((86400, 3600, "d", "h"), (3600, 60, "h", "min")):
        if whole >= large:
            return f"{whole // large} {unit} {whole % large // small} {rest}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
