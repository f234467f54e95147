"""`fcmae compare`: does pretraining help, and with how many labels?"""

SUMMARY = "fine-tune from pretrained weights and from scratch on shares of the labels"
DEFAULT_SHARES = "[1, 5, 10, 100]"


def run(arguments: list[str]) -> int:
    """Fine-tune both starts on every share and seed, write the report, print the sentence."""
    from fcmae.errors import DONE, INTERRUPTED, ConfigError
    from fcmae.settings.files import read_value
    from fcmae.settings.finetune import FinetuneConfig
    from fcmae.settings.help import asks_for_help
    from fcmae.settings.reading import parse, take_options

    if asks_for_help(arguments):
        print(
            f"fcmae compare: {SUMMARY}.\n\n"
            f"  --shares LIST    per cents of the labels, default {DEFAULT_SHARES}\n"
            "  --against FILE   weights to compare with, instead of training from scratch\n\n"
            "All other settings are those of fcmae finetune: the recipe of both.\n"
        )
    options, recipe = take_options(arguments, ("shares", "against"))
    own = dict(options)
    config = parse(FinetuneConfig, recipe, prog="fcmae compare")
    shares = read_value(own.get("shares", DEFAULT_SHARES), "--shares")
    shares = shares if isinstance(shares, list) else [shares]
    if any(isinstance(share, bool) or not isinstance(share, (int, float)) for share in shares):
        raise ConfigError(f"--shares: got {own['shares']!r}, expected numbers: {DEFAULT_SHARES}.")

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
