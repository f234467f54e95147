"""`fcmae compare`: which start is the better one, and with how many labels?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcmae.settings.finetune import FinetuneConfig
    from fcmae.settings.segmentation import SegmentationConfig
    from fcmae.studies.comparison.scores import Comparison

SUMMARY = "fine-tune and probe from several starts on shares of the labels"
DEFAULT_SHARES = "[1, 5, 10, 100]"


def run(arguments: list[str]) -> int:
    """Fine-tune all starts on every share and seed, write the report, print what differs."""
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
            "  --against FILE   weights to compare with, instead of training from scratch\n"
            "  --starts DICT    named starts, any number of them, instead of model.weights and\n"
            "                   --against: '{scratch: null, own: runs/mine, public: timm/NAME}'\n\n"
            "All other settings are those of fcmae finetune: the recipe of both. With --task\n"
            "segmentation shares are of the labelled pictures, and scores are IoU.\n"
        )
    options, recipe = take_options(arguments, ("shares", "against", "starts"))
    own = dict(options)
    config_class, recipe = task_settings(recipe)
    if "starts" in own and config_class is FinetuneConfig:
        recipe += ["--compare.starts", own["starts"]]
    config = parse(config_class, recipe, prog="fcmae compare")
    shares = read_value(own.get("shares", DEFAULT_SHARES), "--shares")
    shares = shares if isinstance(shares, list) else [shares]
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) for share in shares):
        raise ConfigError(f"--shares: got {own['shares']!r}, expected numbers: {DEFAULT_SHARES}.")
    if isinstance(config, SegmentationConfig):
        for name in ("against", "starts"):
            if name in own:
                raise ConfigError(
                    f"--{name}: got {own[name]!r}, but masks are compared with training from "
                    "scratch only; leave it out."
                )
        return _compare_masks(config, shares)
    assert isinstance(config, FinetuneConfig)

    from fcmae.reports.comparison import write_comparison
    from fcmae.runs.terminal import tell
    from fcmae.studies.comparison.pairs import sentences
    from fcmae.studies.comparison.running import compare_over_labels
    from fcmae.training.processes import start_processes

    against = own.get("against")
    processes = start_processes(config.train.device)
    try:
        found = compare_over_labels(config, shares, against, processes)
        if isinstance(found, str):
            return INTERRUPTED
        if processes.is_main:
            for path in write_comparison(found, _settled(found, config), against):
                tell(str(path))
            tell("\n".join(sentences(found)) if found.are_named else found.sentence())
    finally:
        processes.close()
    return DONE


def _compare_masks(config: SegmentationConfig, shares: list[float]) -> int:
    """Train masks from both starts on every share and seed; print the scores, write the report."""
    from fcmae.errors import DONE, INTERRUPTED
    from fcmae.reports.mask_comparison import write_mask_comparison
    from fcmae.runs.terminal import tell
    from fcmae.studies.comparison.running import check_shares
    from fcmae.studies.mask_comparison import compare_masks
    from fcmae.training.processes import start_processes

    check_shares(shares, config.model.weights is not None, config.train.epochs)
    processes = start_processes(config.train.device)
    try:
        found = compare_masks(config, processes, shares)
        if isinstance(found, str):
            return INTERRUPTED
        if processes.is_main:
            for path in write_mask_comparison(found, found.config or config):
                tell(str(path))
    finally:
        processes.close()
    return DONE


def _settled(found: Comparison, config: FinetuneConfig) -> FinetuneConfig:
    """Return the settings with nothing left to a rule, and with the starts that were named."""
    settled = found.config or config
    return dataclasses.replace(settled, compare=config.compare)
