"""`fcmae compare`: which start is the better one, and with how many labels?"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcmae.reports.writing import Report
    from fcmae.settings.finetune import FinetuneConfig
    from fcmae.settings.segmentation import SegmentationConfig
    from fcmae.settings.words import Paths
    from fcmae.studies.comparison.arms import Settings
    from fcmae.training.processes import Processes

SUMMARY = "fine-tune and probe from several starts on shares of the labels"
DEFAULT_SHARES = "[1, 5, 10, 100]"


def run(arguments: list[str]) -> int:
    """Fine-tune all starts on every share and seed, write the report, print what differs."""
    from fcmae.errors import DONE, INTERRUPTED

    return DONE if carry_out(arguments).stopped_by is None else INTERRUPTED


def compare(
    data: Paths | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    starts: Mapping[str, str | os.PathLike[str] | None] | None = None,
    against: str | os.PathLike[str] | None = None,
    shares: Sequence[float] | None = None,
    config: Any = None,
    **settings: Any,
) -> Report:
    """Fine-tune and probe from several starts on shares of the labels, as `fcmae compare` does.

    Every fine-tuning has a folder below `run_dir`, and so has the report; a comparison that was
    stopped goes on where it was.

    Args:
        data: `data.path`, labelled.
        run_dir: `run.dir`.
        weights: `model.weights`, compared with `against` or with training from scratch.
        starts: any number of starts by name instead, None for one from scratch.
        against: weights of the second start.
        shares: per cents of the labels; 1, 5, 10 and 100 where none are given.
        config: a YAML file, the name of a recipe, nested settings, or those of a run.
        settings: any other of `fcmae finetune` by its name; these win over `config`. With
            task="segmentation" masks are compared, scored by IoU.

    Returns:
        The scores as `columns`, what differs as `sentences`, `save()`, and a page.

    Raises:
        ConfigError, DataError, CheckpointError, NonFiniteLossError, DiskError: as `finetune`.
    """
    from fcmae.settings.words import command_line, text_of

    given = {
        "data.path": data,
        "run.dir": run_dir,
        "model.weights": weights,
        "starts": None if starts is None else text_of(starts),
        "against": against,
        "shares": None if shares is None else list(shares),
    }
    return carry_out(command_line(config, given, settings, "fcmae.compare"))


def carry_out(arguments: list[str]) -> Report:
    """Do what a command line says, and write the report into run.dir."""
    from fcmae.errors import ConfigError
    from fcmae.settings.files import read_value
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
    if "starts" in own:
        recipe += ["--compare.starts", own["starts"]]
    config = parse(config_class, recipe, prog="fcmae compare")
    shares = read_value(own.get("shares", DEFAULT_SHARES), "--shares")
    shares = shares if isinstance(shares, list) else [shares]
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) for share in shares):
        raise ConfigError(f"--shares: got {own['shares']!r}, expected numbers: {DEFAULT_SHARES}.")
    if isinstance(config, SegmentationConfig) and "against" in own:
        raise ConfigError(
            f"--against: got {own['against']!r}, but masks of model.weights are compared with "
            "training from scratch only; leave it out, or name both in --starts."
        )

    from fcmae.reports.writing import Report
    from fcmae.runs.terminal import tell
    from fcmae.training.processes import start_processes

    processes = start_processes(config.train.device)
    try:
        if isinstance(config, SegmentationConfig):
            found = _compare_masks(config, shares, processes)
        else:
            found = _compare_labels(config, shares, own.get("against"), processes)
        if isinstance(found, str):
            return Report(Path(config.run.dir), "Not finished", stopped_by=found)
        if processes.is_main:
            for path in found.save(found.path):
                tell(str(path))
            if not isinstance(config, SegmentationConfig):  # whose scores have told it
                tell("\n".join(found.sentences))
        return found
    finally:
        processes.close()


def _compare_labels(
    config: FinetuneConfig, shares: list[float], against: str | None, processes: Processes
) -> Report | str:
    """Train classifiers from all starts on every share and seed; return the report or a signal."""
    from fcmae.reports.comparison import comparison_report
    from fcmae.studies.comparison.running import compare_over_labels

    found = compare_over_labels(config, shares, against, processes)
    if isinstance(found, str):
        return found
    return comparison_report(found, _settled(found.config, config), against)


def _compare_masks(
    config: SegmentationConfig, shares: list[float], processes: Processes
) -> Report | str:
    """Train masks from all starts on every share and seed; return the report or a signal."""
    from fcmae.reports.mask_comparison import mask_comparison_report
    from fcmae.studies.comparison.running import check_shares
    from fcmae.studies.mask_comparison import compare_masks

    has_start = config.model.weights is not None or config.compare.starts is not None
    check_shares(shares, has_start, config.train.epochs)
    found = compare_masks(config, processes, shares)
    if isinstance(found, str):
        return found
    return mask_comparison_report(found, _settled(found.config, config))


def _settled(resolved: Settings | None, config: Settings) -> Settings:
    """Return the settings with nothing left to a rule, and with the starts that were named."""
    if resolved is None:
        return config
    compare = dataclasses.replace(resolved.compare, starts=config.compare.starts)
    return dataclasses.replace(resolved, compare=compare)
