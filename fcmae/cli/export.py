"""`fcmae export RUN --to FORMAT`: what a run has trained, as a file that others load."""

from __future__ import annotations

from pathlib import Path

from fcmae.settings.arguments import new_parser, parse_arguments

SUMMARY = "write the encoder or classifier of a run for timm, Hugging Face, ONNX, the authors"


def run(arguments: list[str]) -> None:
    """Export and print what was written, how equal it is, and the line that loads it."""
    parser = new_parser("export", SUMMARY)
    parser.add_argument("run", help="Folder of a run, of pretraining or fine-tuning.")
    parser.add_argument(
        "--to",
        type=str,
        default="timm",
        help="One of timm, huggingface, onnx, authors-dense, authors-sparse, authors-fcmae.",
    )
    parser.add_argument(
        "--output", type=str, help="File or folder; default RUN/export/encoder..., or classifier..."
    )
    parser.add_argument(
        "--origin",
        type=str,
        default="",
        help="Licence or origin of the images, kept in the file's metadata.",
    )
    parsed = parse_arguments(parser, arguments)

    from fcmae.errors import ConfigError
    from fcmae.runs.folder import RunFolder
    from fcmae.weights.export import export, find_format
    from fcmae.weights.trained import load_trained

    chosen = find_format(parsed.to)
    model, fcmae, info = load_trained(parsed.run, parsed.origin)
    if chosen.takes_decoder and fcmae is None:
        raise ConfigError(
            f"--to: {parsed.to} is a whole FCMAE, and {parsed.run} is a run of fine-tuning, which "
            "has no decoder; name the run of pretraining, or choose another format."
        )
    kind = "encoder" if info.classes is None else "classifier"
    default = RunFolder(parsed.run).export / f"{kind}{chosen.file_name}"
    path = Path(parsed.output) if parsed.output else default
    if parsed.to == "timm" and fcmae is None and path == default:
        print(f"{path}: is a file of timm already, as fine-tuning wrote it.")
    else:
        subject = fcmae if chosen.takes_decoder and fcmae is not None else model
        print(export(subject, parsed.to, path, info))
    if parsed.to == "timm":
        print(f"Load it with: {info.timm_call(path)}")
