"""`fcmae finetune`: fine-tune a classifier on labelled images, or compare, or evaluate one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcmae.settings.finetune import FinetuneConfig

SUMMARY = "fine-tune a classifier on your labelled images, or continue a run"


def run(arguments: list[str]) -> int:
    """Parse the settings and do what they say."""
    from fcmae.errors import DONE, INTERRUPTED
    from fcmae.settings.finetune import FinetuneConfig
    from fcmae.settings.reading import parse

    # What is evaluated alone has no length.
    is_only = any(word.partition("=")[0] == "--evaluate.only" for word in arguments)
    length = {"train.steps": "1"} if is_only else {}
    config = parse(FinetuneConfig, arguments, prog="fcmae finetune", otherwise=length)

    from fcmae.runs.terminal import tell
    from fcmae.training.processes import is_main_process

    signal = carry_out(config)
    if signal is not None and is_main_process():
        tell("\nStart the same command again to go on from here.")
    return DONE if signal is None else INTERRUPTED


def carry_out(config: FinetuneConfig) -> str | None:
    """Fine-tune, compare with scratch or evaluate, as the settings say.

    Returns:
        The name of the signal that stopped it, with a checkpoint written; None when it is done.
    """
    from fcmae.finetuning.scoring import evaluate_only
    from fcmae.finetuning.task import finetune
    from fcmae.studies.comparison.running import compare_with_scratch
    from fcmae.training.processes import start_processes

    processes = start_processes(config.train.device)
    try:
        if config.evaluate.only:
            evaluate_only(config, processes)
            return None
        if config.compare.scratch or config.compare.starts:
            return compare_with_scratch(config, processes)
        return finetune(config, processes).signal
    finally:
        processes.close()
