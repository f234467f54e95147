"""`fcmae pretrain`, and `fcmae plan`, which says beforehand what it will take."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fcmae.settings.pretrain import PretrainConfig

SUMMARY = "pretrain an encoder on your images, or continue a run"
PLAN_SUMMARY = "measure the time and memory that a pretraining will take, and advise"


def run(arguments: list[str]) -> int:
    """Parse the settings, pretrain, and print the command that comes next."""
    from fcmae.errors import DONE, INTERRUPTED
    from fcmae.machine.console import without_collections
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.reading import parse

    config = parse(PretrainConfig, arguments, prog="fcmae pretrain")

    with without_collections():
        from fcmae.pretraining.task import pretrain
        from fcmae.training.processes import is_main_process, processes_of_node

    _tell_of_readers(config.data.workers * processes_of_node())
    signal = pretrain(config)
    if is_main_process():
        from fcmae.runs.terminal import tell

        if signal is not None:
            tell("\nStart the same command again to go on from here.")
        else:
            from fcmae.runs.folder import RunFolder
            from fcmae.runs.loading import load_run_config

            if pictures := RunFolder(config.run.dir).to_look_at():
                tell(f"\n{pictures}")
            tell(
                "\nNext, fine-tune from the exported weights:\n\n  "
                + next_command(load_run_config(config.run.dir), arguments)
            )
    return DONE if signal is None else INTERRUPTED


def plan(arguments: list[str]) -> None:
    """Take the settings of `fcmae pretrain`, measure some steps, and print the plan.

    `--for HARDWARE` estimates a run on other hardware instead.
    """
    from fcmae.errors import remark
    from fcmae.settings.help import asks_for_help
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.reading import parse

    if asks_for_help(arguments):
        print(
            f"fcmae plan: {PLAN_SUMMARY}.\n\n"
            "  --for HARDWARE   estimate a run on hardware that is not here, such as h100, with\n"
            "                   --gpus N (1), --images N and --epochs N; nothing is measured\n"
        )
    elif any(word.partition("=")[0] == "--for" for word in arguments):
        _estimate(arguments)
        return
    config = parse(PretrainConfig, arguments, prog="fcmae plan")

    from fcmae.machine.plan import describe, make_plan

    print(describe(make_plan(config, say=remark)))


def _estimate(arguments: list[str]) -> None:
    from fcmae.settings.estimate import EstimateSettings
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.reading import parse, take_options

    own, rest = take_options(arguments, ("for", "gpus", "images", "epochs"))
    wanted = EstimateSettings.of_words(dict(own))
    needless = {"run.dir": "-", "data.path": "-", "train.steps": "1"}
    config = parse(PretrainConfig, rest, prog="fcmae plan", otherwise=needless)

    from fcmae.machine.plan.estimate import estimate
    from fcmae.machine.plan.roofline import hardware
    from fcmae.model.structure import with_structure

    machine = hardware(wanted.hardware)
    config = with_structure(config, wanted.images)
    print(estimate(config, machine, wanted.gpus, wanted.images, wanted.epochs).describe())


def _tell_of_readers(readers: int) -> None:
    from fcmae.errors import remark
    from fcmae.machine.hardware import num_cores

    if readers > num_cores():
        remark(
            f"data.workers: {readers} readers of this machine share {num_cores()} cores; "
            "fcmae plan tells how many pay."
        )


def next_command(config: PretrainConfig, arguments: list[str]) -> str:
    """Return the command that fine-tunes from the run's weights.

    A configs/X.yaml with a configs/X_finetune.yaml beside it is fine-tuned by that one.
    """
    from fcmae.settings.files import find_config

    weights = str(Path(config.run.dir) / "export" / "encoder.safetensors")
    for position, argument in enumerate(arguments):
        option, _, given = argument.partition("=")
        given = given or "".join(arguments[position + 1 : position + 2])
        suffix = ".yaml" if given.endswith(".yaml") else ""
        beside = f"{given.removesuffix('.yaml')}_finetune{suffix}"
        if option == "--config" and find_config(beside).is_file():
            command = ["fcmae", "finetune", "--config", beside]
            # The file names the weights of the run that X.yaml makes when nothing is overridden.
            return shlex.join(
                command if _names(beside, weights) else [*command, "--model.weights", weights]
            )
    data, model = config.data, config.model
    size = data.image_size
    options = {
        "run.dir": config.run.dir.rstrip("/") + "-finetune",
        "data.path": _labelled(config),
        "data.image_size": str(size if isinstance(size, int) else list(size)),
        "data.in_chans": str(data.in_chans),
        "model.name": model.name,
        "model.stem_stride": str(model.stem_stride),
        "model.weights": weights,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return shlex.join(["fcmae", "finetune", *words])


def _labelled(config: PretrainConfig) -> str:
    """Return the images where their run was scored by labels, else what is expected there."""
    from fcmae.runs.folder import RunFolder

    path = config.data.path
    is_scored = (RunFolder(config.run.dir).path / "scores.txt").is_file()
    return path if is_scored and isinstance(path, str) else "FOLDER_WITH_ONE_FOLDER_PER_CLASS"


def _names(config_file: str, weights: str) -> bool:
    from fcmae.settings.files import read_yaml

    settings = read_yaml(config_file, "--config")
    named = settings.get("model", {}).get("weights")
    return named is not None and Path(named) in (Path(weights), Path(weights).parent.parent)
