"""`fcmae ablate`: a grid of runs, each evaluated in the same way; `fcmae report`: pages of runs."""

SUMMARY = "pretrain over a grid of settings and seeds, evaluate, and write a report"
REPORT_SUMMARY = "write report.html, .md and .csv of a run or an ablation"


def run(arguments: list[str]) -> int:
    """Run what is left of the ablation, write its report, and return the exit status.

    `fcmae ablate cell FOLDER NAME` runs one cell of an ablation alone, as jobs of a cluster do.
    """
    if len(arguments) == 3 and arguments[0] == "cell":
        from fcmae.studies.ablation.worker import run_cell

        return run_cell(*arguments[1:])

    from fcmae.errors import DONE
    from fcmae.settings.ablation import parse_ablation
    from fcmae.settings.reading import to_yaml

    words = [word for word in arguments if word != "--print_config"]
    ablation = parse_ablation(words)
    if words != arguments:
        print(to_yaml(ablation), end="")
        return DONE

    from fcmae.reports.writing import write_ablation_report
    from fcmae.runs.terminal import tell
    from fcmae.studies.ablation.runner import Runner

    status = Runner(ablation, say=lambda sentence: tell(f"fcmae: {sentence}")).run()
    for path in write_ablation_report(ablation.run.dir):
        tell(str(path))
    return status


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
