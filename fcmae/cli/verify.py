"""`fcmae verify [RUN | --config FILE]`: the sparsity certificate of the user's own model."""

import json
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
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
    from fcmae.errors import DONE, FAILED, ConfigError
    from fcmae.settings.help import asks_for_help
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.ranges import require
    from fcmae.settings.reading import parse, take_options

    if asks_for_help(arguments):
        print(_HELP)
        return DONE
    options, settings = take_options(arguments, ("grn-scope", "device", "json"), flags=("json",))
    own = dict(options)
    scope, as_json = own.get("grn-scope"), "json" in own
    require(scope in (None, "image", "batch"), "--grn-scope", repr(scope), "image or batch")
    run_dir = settings.pop(0) if settings and not settings[0].startswith("-") else None
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

    device = choose_device(own.get("device", "cpu"), setting="--device")
    certificate = (
        verify_config(config, device)
        if run_dir is None
        else verify_run(run_dir, cast("GrnScope | None", scope), device)
    )
    print(json.dumps(certificate.to_plain(), indent=2) if as_json else certificate.to_text())
    return DONE if certificate.holds else FAILED
