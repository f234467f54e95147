"""`fcmae convert IN OUT --to FORMAT`, `fcmae export SOURCE`: weights as another code reads them."""

from typing import Any

from fcmae.settings.arguments import new_parser, parse_arguments

SUMMARY = "turn weights into another format: timm, the authors' three, Hugging Face, ONNX"
EXPORT_SUMMARY = (
    "write the encoder or classifier of a run for timm, Hugging Face, ONNX, the authors"
)


def run(arguments: list[str]) -> None:
    """Convert one file and print how equal the result is."""
    parser = new_parser("convert", SUMMARY)
    parser.add_argument("input", help="Weights file, Hugging Face folder, or folder of a run.")
    parser.add_argument("output", help="File (.safetensors, .pth, .onnx), or Hugging Face folder.")
    _convert(parser, arguments, "input", None)


def export(arguments: list[str]) -> None:
    """Export and print what was written, how equal it is, and the line that loads it."""
    parser = new_parser("export", EXPORT_SUMMARY)
    parser.add_argument("run", help="Folder of a run, weights file, or Hugging Face folder.")
    parser.add_argument(
        "--output",
        type=str,
        help="File or folder; default RUN/export/encoder... or classifier..., or beside the file.",
    )
    _convert(parser, arguments, "run", "timm")


def _convert(parser: Any, arguments: list[str], source: str, default: str | None) -> None:
    """Add the options of both commands, convert, and print what is to be said of it.

    Args:
        parser: has `source` and the output already.
        arguments: words of the command line.
        source: name of the argument that says what is converted.
        default: format that is written where none is named; None: one must be.
    """
    from fcmae.weights.formats import FILE_NAMES, FORMAT_NAMES

    parser.add_argument(
        "--to",
        type=str,
        required=default is None,
        default=default,
        help=f"One of {', '.join(FILE_NAMES)}.",
    )
    parser.add_argument(
        "--from",
        type=str,
        default="auto",
        help=f"One of {', '.join(FORMAT_NAMES)}; auto tells by names and shapes.",
    )
    parser.add_argument(
        "--origin",
        type=str,
        default="",
        help="Licence or origin of weights or images, kept in the metadata; a known one, such as "
        "facebookresearch/ConvNeXt-V2, adds its licence note.",
    )
    parsed = parse_arguments(parser, arguments)

    from fcmae.weights.export import convert_file

    for sentence in convert_file(
        parsed[source],
        parsed.output,
        to=parsed.to,
        from_format=parsed["from"],
        origin=parsed.origin,
    ):
        print(sentence)
