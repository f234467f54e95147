"""`fcmae pretrain`: pretrain an encoder on a folder of images."""

from __future__ import annotations

SUMMARY = "pretrain an encoder on your images, or continue a run"


def run(arguments: list[str]) -> int:
    """Parse the settings, pretrain, and print the command that comes next."""
    from fcmae.cli import DONE, INTERRUPTED
    from fcmae.config import PretrainConfig
    from fcmae.configuration import parse
    from fcmae.pretraining import pretrain

    config = parse(PretrainConfig, arguments, prog="fcmae pretrain")
    signal = pretrain(config)
    if signal is not None:
        return INTERRUPTED
    return DONE
