"""`fcmae compare`: does pretraining help, and with how many labels?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcmae.settings.segmentation import SegmentationConfig

SUMMARY = "fine-tune from pretrained weights and from scratch on shares of the labels"
DEFAULT_SHARES = "[1, 5, 10, 100]"


def run(arguments: list[str]) -> int:
    """Fine-tune both starts on every share and seed, write the report, print the sentence."""
    from fcmae.errors import DONE, INTERRUPTED, ConfigError
    from fcmae.settings.files import read_value
    from fcmae.settings.finetune import FinetuneConfig
    from fcmae.settings.help import asks_for_help
    from fcmae.settings.reading import parse, take_options
    from fcmae.settings.segmentation import SegmentationConfig
    from fcmae.settings.tasks import task_settings

    if asks_for_help(arguments):
        print(
            f"fcmae compare: {SUMMARY}.\n\n"
            f"  --shares LIST    per cents of the labels, default {DEFAULT_SHARES}\n"
            "  --against FILE   weights to compare with, instead of training from scratch\n\n"
            "All other settings are those of fcmae finetune: the recipe of both. With --task\n"
            "segmentation shares are of the labelled pictures, and scores are IoU.\n"
        )
    options, recipe = take_options(arguments, ("shares", "against"))
    own = dict(options)
    config_class, recipe = task_settings(recipe)
    config = parse(config_class, recipe, prog="fcmae compare")
    shares = read_value(own.get("shares", DEFAULT_SHARES), "--shares")
    shares = shares if isinstance(shares, list) else [shares]
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) for share in shares):
        raise ConfigError(f"--shares: got {own['shares']!r}, expected numbers: {DEFAULT_SHARES}.")
    if isinstance(config, SegmentationConfig):
        return _compare_masks(config, shares, own.get("against"))
    assert isinstance(config, FinetuneConfig)

    from fcmae.reports.comparison import write_comparison
    from fcmae.runs.terminal import tell
    from fcmae.studies.comparison import compare_over_labels
    from fcmae.training.processes import start_processes

    against = own.get("against")
    processes = start_processes(config.train.device)
    try:
        found = compare_over_labels(config, shares, against, processes)
        if isinstance(found, str):
            return INTERRUPTED
        if processes.is_main:
            for path in write_comparison(found, found.config or config, against):
                tell(str(path))
            tell(found.sentence())
    finally:
        processes.close()
    return DONE


def _compare_masks(config: SegmentationConfig, shares: list[float], against: str | None) -> int:
    """Train masks from both starts on every share and seed; print the scores and the sentence."""
    from fcmae.errors import DONE, INTERRUPTED, ConfigError
    from fcmae.studies.comparison import check_shares
    from fcmae.studies.mask_comparison import compare_masks
    from fcmae.training.processes import start_processes

    if against is not None:
        raise ConfigError(
            f"--against: got {against!r}, but masks are compared with training from scratch only; "
            "leave it out."
        )
    check_shares(shares, config.model.weights, config.train.epochs)
    processes = start_processes(config.train.device)
    try:
        found = compare_masks(config, processes, shares)
    finally:
        processes.close()
    return INTERRUPTED if isinstance(found, str) else DONE
