"""`fcmae submit COMMAND`: train as a job of a SLURM cluster, queued again until it is done."""

from __future__ import annotations

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
    from fcmae.settings.reading import parse
    from fcmae.settings.submit import SubmitConfig
    from fcmae.studies.submission import Job, submit

    command, arguments = (arguments or ["--help"])[0], arguments[1:]
    if command in ("-h", "--help"):
        print(USAGE)
        parse(SubmitConfig, ["--help"], prog="fcmae submit COMMAND")
    mine, others = split(arguments)
    slurm = parse(SubmitConfig, mine, prog="fcmae submit").slurm
    work, config_class, check = _command(command)
    config = parse(config_class, others, prog=f"fcmae {command}")
    check(config)
    job = submit(Job(work, others), slurm, config.run.dir)
    print(f"job {job.job_id} is queued; it trains in {config.run.dir} and writes to:")
    for path in (job.paths.stdout, job.paths.stderr):
        print(f"  {path}")
    print("Submitting the same command again continues the run, should the job be lost.")
    return DONE


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the words of the job (--slurm.X, --executor) and those of the command."""
    mine: list[str] = []
    others: list[str] = []
    chosen = others
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            chosen = mine if name.startswith("--slurm.") or name == "--executor" else others
        chosen.append(f"--slurm.executor{equals}{value}" if name == "--executor" else word)
    return mine, others


def _command(
    name: str,
) -> tuple[Callable[[list[str]], int], type[Any], Callable[[Any], None]]:
    """Return what a command runs, the class of its settings, and what checks them on their own."""
    if name == "pretrain":
        from fcmae.cli import pretrain
        from fcmae.pretraining import task as pretraining
        from fcmae.settings.pretrain import PretrainConfig

        return pretrain.run, PretrainConfig, pretraining.check
    if name == "finetune":
        from fcmae.cli import finetune
        from fcmae.finetuning import setup as finetuning
        from fcmae.settings.finetune import FinetuneConfig

        return finetune.run, FinetuneConfig, finetuning.check
    raise ConfigError(f"fcmae submit: got {name!r}, expected pretrain or finetune.")
