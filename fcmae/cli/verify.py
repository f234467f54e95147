"""`fcmae verify [RUN | --config FILE]`: the sparsity certificate of the user's own model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparse.encoder import GrnScope

SUMMARY = "prove on your model that hidden pixels and other images have no influence"
# Settings that every config must have and that have nothing to do with the model.
_IRRELEVANT = ["--run.dir", "-", "--data.path", "-", "--train.steps", "1"]
_HELP = """usage: fcmae verify [RUN | --config FILE] [--section.setting VALUE ...]
                    [--grn-scope image|batch] [--json]

Measures, on random images, that what runs is sparse FCMAE and nothing else, and prints a table with
one line per claim. Exit status 1 when a claim fails.

RUN                the folder of a pretraining: its weights, with GRN's redrawn at random
--config FILE      otherwise the settings of fcmae pretrain; all weights are drawn at random
--grn-scope batch  as the released PyTorch code: shows how images of a batch are coupled
--json             print the figures for machines"""


def run(arguments: list[str]) -> int:
    """Verify, print the table, and return 1 if a claim fails."""
    if "-h" in arguments or "--help" in arguments:
        print(_HELP)
        return 0

    from fcmae.errors import DONE, FAILED, ConfigError
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.reading import parse
    from fcmae.verification.subjects import verify_config, verify_run

    run_dir, scope, as_json, settings = _split(arguments)
    if run_dir is not None:
        if settings:
            raise ConfigError(
                f"fcmae verify: got {settings[0]!r} beside the run {run_dir!r}, which says itself "
                "what its model is; leave one of them out."
            )
        certificate = verify_run(run_dir, scope)
    else:
        has_config = any(s == "--config" or s.startswith("--config=") for s in settings)
        scope_setting = ["--model.grn_scope", scope] if scope else []
        settings = ([] if has_config else _IRRELEVANT) + settings + scope_setting
        certificate = verify_config(parse(PretrainConfig, settings, prog="fcmae verify"))
    print(json.dumps(certificate.to_plain(), indent=2) if as_json else certificate.to_text())
    return DONE if certificate.holds else FAILED


def _split(arguments: list[str]) -> tuple[str | None, GrnScope | None, bool, list[str]]:
    """Return the run folder, the GRN scope, whether JSON is wanted, and the settings."""
    from typing import get_args

    from fcmae.errors import ConfigError
    from sparse.encoder import GrnScope

    rest = list(arguments)
    as_json = "--json" in rest
    rest = [argument for argument in rest if argument != "--json"]
    run_dir = rest.pop(0) if rest and not rest[0].startswith("-") else None
    given = None
    for position, argument in enumerate(rest):
        name, _, value = argument.partition("=")
        if name == "--grn-scope":
            given = value or "".join(rest[position + 1 : position + 2])
            del rest[position : position + (1 if value else 2)]
            break
    for scope in get_args(GrnScope):
        if given == scope:
            return run_dir, scope, as_json, rest
    if given is not None:
        raise ConfigError(f"--grn-scope: got {given!r}, expected image or batch.")
    return run_dir, None, as_json, rest
