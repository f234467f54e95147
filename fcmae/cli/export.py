"""`fcmae export RUN --to FORMAT`: the pretrained encoder as a file that others load."""

from __future__ import annotations

from pathlib import Path

from fcmae.cli.arguments import new_parser, parse_arguments

SUMMARY = "write the encoder of a run for timm, checked by loading it back"


def run(arguments: list[str]) -> None:
    """Export and print what was written, how equal it is, and the line that loads it."""
    from fcmae.encoder_info import EncoderInfo
    from fcmae.export import FORMATS, export, find_format
    from fcmae.run_folder import RunFolder
    from fcmae.run_model import load_run

    parser = new_parser("export", SUMMARY)
    parser.add_argument("run", help="Folder of a pretraining run.")
    parser.add_argument("--to", type=str, default="timm", help=f"One of {', '.join(FORMATS)}.")
    parser.add_argument("--output", type=str, help="File; default RUN/export/encoder.safetensors.")
    parser.add_argument(
        "--origin",
        type=str,
        default="",
        help="Licence or origin of the images, kept in the file's metadata.",
    )
    parsed = parse_arguments(parser, arguments)
    chosen = find_format(parsed.to)
    loaded = load_run(parsed.run)
    info = EncoderInfo.of_run(loaded.config, loaded.model, loaded.step, parsed.origin)
    default = RunFolder(parsed.run).export / chosen.file_name
    path = Path(parsed.output) if parsed.output else default
    print(export(loaded.model.encoder, parsed.to, path, info))
    if parsed.to == "timm":
        print(f"Load it with: {info.timm_call(path)}")
