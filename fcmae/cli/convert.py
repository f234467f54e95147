"""`fcmae convert IN OUT --to FORMAT`: weights in the layout that another code reads."""

from __future__ import annotations

from fcmae.settings.arguments import new_parser, parse_arguments

SUMMARY = "turn weights into another layout: timm, the authors' three, Hugging Face, and back"


def run(arguments: list[str]) -> None:
    """Convert one file and print how equal the result is."""
    from fcmae.weights.formats import FORMAT_NAMES

    formats = ", ".join(FORMAT_NAMES)
    parser = new_parser("convert", SUMMARY)
    parser.add_argument("input", help="Weights file, Hugging Face folder, or folder of a run.")
    parser.add_argument("output", help="File (.safetensors, .pth), or Hugging Face folder.")
    parser.add_argument("--to", type=str, required=True, help=f"One of {formats}.")
    parser.add_argument(
        "--from", type=str, default="auto", help="As --to; auto tells by names and shapes."
    )
    parser.add_argument(
        "--origin",
        type=str,
        default="",
        help="Where the weights come from, such as facebookresearch/ConvNeXt-V2, whose licence "
        "note is then added; kept in the metadata.",
    )
    parsed = parse_arguments(parser, arguments)

    from fcmae.weights.files import convert_file

    told = convert_file(
        parsed.input,
        parsed.output,
        to=parsed.to,
        from_format=parsed["from"],
        origin=parsed.origin,
    )
    for sentence in told:
        print(sentence)
