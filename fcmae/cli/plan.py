"""`fcmae plan`: what a pretraining will take on this machine, before it is started."""

from __future__ import annotations

SUMMARY = "measure the time and memory that a pretraining will take, and advise"


def run(arguments: list[str]) -> None:
    """Take the settings of `fcmae pretrain`, measure some steps, and print the plan."""
    from fcmae.errors import remark
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.reading import parse

    config = parse(PretrainConfig, arguments, prog="fcmae plan")

    from fcmae.machine.plan import make_plan, report

    print(report(make_plan(config, say=remark)))
