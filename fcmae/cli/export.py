"""`fcmae export SOURCE --to FORMAT`: what a run has trained, as a file that others load."""

from fcmae.cli.convert import add_options
from fcmae.settings.arguments import new_parser, parse_arguments

SUMMARY = "write the encoder or classifier of a run for timm, Hugging Face, ONNX, the authors"


def run(arguments: list[str]) -> None:
    """Export and print what was written, how equal it is, and the line that loads it."""
    parser = new_parser("export", SUMMARY)
    parser.add_argument("run", help="Folder of a run, weights file, or Hugging Face folder.")
    parser.add_argument(
        "--output",
        type=str,
        help="File or folder; default RUN/export/encoder... or classifier..., or beside the file.",
    )
    add_options(parser, "timm")
    parsed = parse_arguments(parser, arguments)

    from fcmae.weights.export import convert_file

    for sentence in convert_file(
        parsed.run,
        parsed.output,
        to=parsed.to,
        from_format=parsed["from"],
        origin=parsed.origin,
    ):
        print(sentence)
