"""`fcmae finetune`: fine-tune on labels or masks, or compare, or evaluate what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcmae.settings.finetune import FinetuneConfig
    from fcmae.settings.segmentation import SegmentationConfig
    from fcmae.training.processes import Processes

SUMMARY = "fine-tune a classifier, or with --task segmentation masks, or continue a run"


def run(arguments: list[str]) -> int:
    """Parse the settings and do what they say."""
    from fcmae.errors import DONE, INTERRUPTED
    from fcmae.settings.reading import parse
    from fcmae.settings.tasks import task_settings

    # What is evaluated alone has no length.
    is_only = any(word.partition("=")[0] == "--evaluate.only" for word in arguments)
    length = {"train.steps": "1"} if is_only else {}
    config_class, words = task_settings(arguments)
    config: Any = parse(config_class, words, prog="fcmae finetune", otherwise=length)

    from fcmae.runs.folder import RunFolder
    from fcmae.runs.terminal import tell
    from fcmae.training.processes import is_main_process

    signal = carry_out(config)
    # Evaluation alone says what stands in its scores.txt, and draws none of these.
    pictures = "" if config.evaluate.only else RunFolder(config.run.dir).to_look_at()
    if signal is not None and is_main_process():
        tell("\nStart the same command again to go on from here.")
    elif pictures and is_main_process():
        tell(f"\n{pictures}")
    return DONE if signal is None else INTERRUPTED


def carry_out(config: FinetuneConfig | SegmentationConfig) -> str | None:
    """Fine-tune, compare with scratch or evaluate, as the settings say.

    Returns:
        The name of the signal that stopped it, with a checkpoint written; None when it is done.
    """
    from fcmae.settings.segmentation import SegmentationConfig
    from fcmae.training.processes import start_processes

    processes = start_processes(config.train.device)
    try:
        if isinstance(config, SegmentationConfig):
            return _segment(config, processes)
        return _classify(config, processes)
    finally:
        processes.close()


def _classify(config: FinetuneConfig, processes: Processes) -> str | None:
    from fcmae.finetuning.scoring import evaluate_only
    from fcmae.finetuning.task import finetune
    from fcmae.studies.comparison.running import compare_with_scratch

    if config.evaluate.only:
        evaluate_only(config, processes)
        return None
    if config.compare.scratch or config.compare.starts:
        return compare_with_scratch(config, processes)
    return finetune(config, processes).signal


def _segment(config: SegmentationConfig, processes: Processes) -> str | None:
    from fcmae.finetuning.segmentation.scoring import evaluate_only
    from fcmae.finetuning.segmentation.task import segment
    from fcmae.studies.mask_comparison import compare_masks

    if config.evaluate.only:
        evaluate_only(config, processes)
        return None
    if config.compare.scratch or config.compare.starts:
        found = compare_masks(config, processes)
        return found if isinstance(found, str) else None
    return segment(config, processes).signal
