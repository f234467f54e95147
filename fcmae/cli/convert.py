"""`fcmae convert IN OUT --to FORMAT`: weights in the format that another code reads."""

from typing import Any

from fcmae.settings.arguments import new_parser, parse_arguments

SUMMARY = "turn weights into another format: timm, the authors' three, Hugging Face, ONNX"


def run(arguments: list[str]) -> None:
    """Convert one file and print how equal the result is."""
    parser = new_parser("convert", SUMMARY)
    parser.add_argument("input", help="Weights file, Hugging Face folder, or folder of a run.")
    parser.add_argument("output", help="File (.safetensors, .pth, .onnx), or Hugging Face folder.")
    add_options(parser, None)
    parsed = parse_arguments(parser, arguments)

    from fcmae.weights.export import convert_file

    for sentence in convert_file(
        parsed.input,
        parsed.output,
        to=parsed.to,
        from_format=parsed["from"],
        origin=parsed.origin,
    ):
        print(sentence)


def add_options(parser: Any, default: str | None) -> None:
    """Add --to, --from and --origin, which `fcmae export` has, too."""
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
