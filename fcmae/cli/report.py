"""`fcmae report RUN`: one page about a run or an ablation, readable without any network."""

from __future__ import annotations

from fcmae.settings.arguments import new_parser, parse_arguments

SUMMARY = "write report.html, .md and .csv of a run or an ablation"


def run(arguments: list[str]) -> None:
    """Write the report and print where it is."""
    parser = new_parser("report", SUMMARY)
    parser.add_argument("run", help="Folder of a pretraining run or of an ablation.")
    parser.add_argument("--output", type=str, help="Folder of the report; default RUN.")
    parsed = parse_arguments(parser, arguments)

    from fcmae.reports.writing import write_report

    for path in write_report(parsed.run, parsed.output):
        print(path)
