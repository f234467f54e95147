"""`fcmae ablate`: a grid of runs, each evaluated in the same way; `fcmae report`: pages of runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcmae.reports.writing import Report
    from fcmae.settings.ablation import Ablation
    from fcmae.settings.words import Paths

SUMMARY = "pretrain over a grid of settings and seeds, evaluate, and write a report"
REPORT_SUMMARY = "write report.html, .md and .csv of a run or an ablation"


def run(arguments: list[str]) -> int:
    """Run what is left of the ablation, write its report, and return the exit status.

    `fcmae ablate cell FOLDER NAME` runs one cell of an ablation alone, as jobs of a cluster do.
    """
    if len(arguments) == 3 and arguments[0] == "cell":
        from fcmae.studies.ablation.worker import run_cell

        return run_cell(*arguments[1:])

    from fcmae.errors import DONE, FAILED, INTERRUPTED
    from fcmae.settings.ablation import parse_ablation
    from fcmae.settings.reading import to_yaml

    words = [word for word in arguments if word != "--print_config"]
    ablation = parse_ablation(words)
    if words != arguments:
        print(to_yaml(ablation), end="")
        return DONE

    found = carry_out(ablation)
    if found.stopped_by is not None:
        return INTERRUPTED
    return FAILED if found.failures else DONE


def ablate(
    data: Paths | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    model: str | None = None,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Report:
    """Pretrain over a grid of settings and seeds and evaluate all alike, as `fcmae ablate` does.

    Each cell trains in a process of its own below `run_dir`; one that was stopped goes on.

    Args:
        data: `base.data.path`.
        run_dir: `run.dir`, the folder of all cells and of the report.
        model: `base.model.name`.
        grid: {"mask.ratio": [0.4, 0.6], "train.seed": [0, 1]}: what varies, seeds among it.
        config: a YAML file, the name of a recipe, or nested settings with base, grid and so on.
        settings: any other by its name, `**{"base.train.steps": 500, "evaluate.draws": 3}`; these
            win over `config`.

    Returns:
        One row per cell as `columns`, what differs as `sentences`, cells that failed with their
        reasons as `failures`, `save()`, and a page.

    Raises:
        ConfigError: a setting that is unknown, missing or cannot work, before anything starts.
        DataError: no images, or none with labels where scores need them.
    """
    from fcmae.settings.ablation import parse_ablation
    from fcmae.settings.words import command_line, text_of, words_of

    words: list[str] = []
    if isinstance(config, Mapping):  # whose base and finetune hold sections, and whose grid is one
        plain = {**config, "grid": text_of(config["grid"])} if "grid" in config else config
        for section, values in plain.items():
            depth = 2 if section in ("base", "finetune") else 1
            words += words_of({section: values}, depth=depth)
    elif config is not None:
        words = ["--config", os.fspath(config)]
    given = {
        "base.data.path": data,
        "run.dir": run_dir,
        "base.model.name": model,
        "grid": None if grid is None else text_of(grid),
    }
    words += command_line(None, given, settings, "fcmae.ablate")
    return carry_out(parse_ablation(words))


def carry_out(ablation: Ablation) -> Report:
    """Run what is left of an ablation, and write its report beside it."""
    from fcmae.reports.writing import ablation_report
    from fcmae.runs.terminal import tell
    from fcmae.studies.ablation.runner import Runner

    runner = Runner(ablation, say=lambda sentence: tell(f"fcmae: {sentence}"))
    runner.run()
    found = ablation_report(ablation.run.dir, runner.stopped_by)
    for path in found.save(found.path):
        tell(str(path))
    return found


def report(arguments: list[str]) -> None:
    """Write the report of a run or an ablation, and print where it is."""
    from fcmae.settings.arguments import new_parser, parse_arguments

    parser = new_parser("report", REPORT_SUMMARY)
    parser.add_argument("run", help="Folder of a pretraining, a fine-tuning or an ablation.")
    parser.add_argument("--output", type=str, help="Folder of the report; default RUN.")
    parsed = parse_arguments(parser, arguments)

    from fcmae.reports.writing import write_report

    for path in write_report(parsed.run, parsed.output):
        print(path)
