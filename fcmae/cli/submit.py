"""`fcmae submit COMMAND`: train as a job of a SLURM cluster, queued again until it is done."""

from collections.abc import Callable
from typing import Any

from fcmae.errors import DONE, ConfigError

SUMMARY = "queue a training on a SLURM cluster; it is queued again until it is done"
USAGE = (
    "usage: fcmae submit pretrain|finetune [settings of the command] [--slurm.setting VALUE ...]\n"
    "\nExample: fcmae submit pretrain --config configs/pretrain/tiny.yaml --slurm.nodes 2 "
    "--slurm.gpus 8 --slurm.hours 24 --slurm.partition gpu\n"
)


def run(arguments: list[str]) -> int:
    """Check the settings of job and command, and queue the job."""
    from fcmae.settings.help import asks_for_help
    from fcmae.settings.reading import parse, take_options
    from fcmae.settings.submit import SubmitConfig

    command, arguments = (arguments or ["--help"])[0], arguments[1:]
    if asks_for_help([command]):
        print(USAGE)
        parse(SubmitConfig, ["--help"], prog="fcmae submit COMMAND")
    options, others = take_options(arguments, ("executor", "slurm."))
    config_class, others = _config_class(command, others)
    mine = [f"--slurm.{name.removeprefix('slurm.')}={text}" for name, text in options]
    slurm = parse(SubmitConfig, mine, prog="fcmae submit").slurm
    config = parse(config_class, others, prog=f"fcmae {command}")

    from fcmae.studies.submission import Job, submit

    work, check = _work_and_check(command, config)
    check(config)
    job = submit(Job(work, others), slurm, config.run.dir)
    print(f"job {job.job_id} is queued; it trains in {config.run.dir} and writes to:")
    for path in (job.paths.stdout, job.paths.stderr):
        print(f"  {path}")
    print("Submitting the same command again continues the run, should the job be lost.")
    return DONE


def _config_class(command: str, words: list[str]) -> tuple[type[Any], list[str]]:
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.tasks import task_settings

    if command not in ("pretrain", "finetune"):
        raise ConfigError(f"fcmae submit: got {command!r}, expected pretrain or finetune.")
    return (PretrainConfig, words) if command == "pretrain" else task_settings(words)


def _work_and_check(
    command: str, config: Any
) -> tuple[Callable[[list[str]], int], Callable[[Any], None]]:
    """Return what a command runs, and what checks its settings on their own."""
    if command == "pretrain":
        from fcmae.cli import pretrain
        from fcmae.pretraining import task as pretraining

        return pretrain.run, pretraining.check
    from fcmae.cli import finetune
    from fcmae.finetuning import setup as finetuning
    from fcmae.finetuning.segmentation import task as segmentation
    from fcmae.settings.segmentation import SegmentationConfig

    is_segmentation = isinstance(config, SegmentationConfig)
    return finetune.run, segmentation.check if is_segmentation else finetuning.check
