"""`fcmae verify [RUN | --config FILE]`: the sparsity certificate of the user's own model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.verification.certificate import Certificate
    from sparse.encoder import GrnScope

SUMMARY = "prove on your model that hidden pixels and other images have no influence"
# Settings that every config must have and that have nothing to do with the model.
_IRRELEVANT = {"run.dir": "-", "data.path": "-", "train.steps": "1"}
_HELP = """usage: fcmae verify [RUN | --config FILE] [--section.setting VALUE ...]
                    [--grn-scope image|batch] [--device cpu|cuda|cuda:N] [--json]

Measures, on random images, that what runs is sparse FCMAE and nothing else, and prints a table with
one line per claim. Exit status 1 when a claim fails.

RUN                the folder of a pretraining: its weights, with GRN's redrawn at random
--config FILE      otherwise the settings of fcmae pretrain; all weights are drawn at random
--grn-scope batch  as the released PyTorch code: shows how images of a batch are coupled
--device cuda      where it computes, default cpu, beside a reference on the CPU in float64; each
                   precision has a bound of its own (FCMAE_TRITON=0: without the Triton kernels)
--json             print the figures for machines"""


def run(arguments: list[str]) -> int:
    """Verify, print the table, and return 1 if a claim fails."""
    from fcmae.errors import DONE, FAILED
    from fcmae.settings.help import asks_for_help
    from fcmae.settings.reading import take_options

    if asks_for_help(arguments):
        print(_HELP)
        return DONE
    options, settings = take_options(arguments, ("grn-scope", "device", "json"), flags=("json",))
    own = dict(options)
    run_dir = settings.pop(0) if settings and not settings[0].startswith("-") else None
    certificate = carry_out(run_dir, settings, own.get("grn-scope"), own.get("device", "cpu"))
    as_json = "json" in own
    print(json.dumps(certificate.to_plain(), indent=2) if as_json else certificate.to_text())
    return DONE if certificate.holds else FAILED


def verify(
    run: str | os.PathLike[str] | None = None,
    config: PretrainConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    grn_scope: str | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Certificate:
    """Certify that a model is sparse FCMAE and nothing else, as `fcmae verify` does.

    Args:
        run: a pretraining: its weights, with GRN's redrawn at random.
        config: otherwise a YAML file, the name of a recipe, nested settings, or a PretrainConfig;
            all weights are drawn at random.
        grn_scope: image, or batch as the released PyTorch code; None: as the settings say.
        device: where it computes, beside a reference on the CPU in float64: cpu, cuda or cuda:N.
        settings: any of `fcmae pretrain` by its name; these win over `config`.

    Returns:
        The certificate, with `holds`, `lines` of measured figures and bounds, and `save()`.

    Raises:
        ConfigError: settings that cannot work, or beside a run.
        CheckpointError: a run whose checkpoints cannot be read.
        UnsupportedModelError: the encoder cannot run sparsely.
    """
    from fcmae.settings.words import command_line

    words = command_line(config, {}, settings, "fcmae.verify")
    return carry_out(None if run is None else os.fspath(run), words, grn_scope, device)


def carry_out(
    run_dir: str | None, settings: list[str], scope: str | None, device: str
) -> Certificate:
    """Verify the model of a run, or that of the words of a command line."""
    from fcmae.errors import ConfigError
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.ranges import require
    from fcmae.settings.reading import parse

    require(scope in (None, "image", "batch"), "--grn-scope", repr(scope), "image or batch")
    if run_dir is not None and settings:
        raise ConfigError(
            f"fcmae verify: got {settings[0]!r} beside the run {run_dir!r}, which says itself "
            "what its model is; leave one of them out."
        )
    if run_dir is None:
        scope_setting = ["--model.grn_scope", scope] if scope else []
        config = parse(
            PretrainConfig, settings + scope_setting, prog="fcmae verify", otherwise=_IRRELEVANT
        )

    from fcmae.training.processes import choose_device
    from fcmae.verification.subjects import verify_config, verify_run

    on = choose_device(device, setting="--device")
    if run_dir is None:
        return verify_config(config, on)
    return verify_run(run_dir, cast("GrnScope | None", scope), on)
