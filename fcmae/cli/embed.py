"""`fcmae embed RUN IMAGES --output FILE`: one feature vector per image, as npz, CSV or Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

if TYPE_CHECKING:
    from fcmae.evaluation import Features

SUMMARY = "write the features of images to a file (.npz, .csv, .parquet) with their names"
FORMATS = ("npz", "csv", "parquet")


def run(arguments: list[str]) -> None:
    """Write `features` [N, D] float32, `files` [N], `skipped_files`, and `labels`, `classes`."""
    parser = new_parser("embed", SUMMARY)
    parser.add_argument("source", help="Folder of a run, or a file of weights.")
    parser.add_argument("images", nargs="+", help="Images, folders, lists of paths, or elpv.")
    parser.add_argument("--output", type=str, required=True, help="The file to write.")
    parser.add_argument(
        "--format", type=str, help="npz, csv or parquet; by default the suffix of --output, or npz."
    )
    parser.add_argument("--label", type=str, help="Which labels of elpv go into the file.")
    for name, kind, text in (
        ("model.name", str, "timm name"),
        ("model.stem_stride", int, "pixels per cell of the stem"),
        ("data.in_chans", int, "image channels"),
        ("data.image_size", int, "pixels per side"),
    ):
        about = f"Only for weights that do not say it themselves: {text}."
        parser.add_argument(f"--{name}", type=kind, help=about)
    add_reading_options(parser)
    parsed = parse_arguments(parser, arguments)

    from fcmae.data import open_images
    from fcmae.data.accounting import account_sentence
    from fcmae.errors import ConfigError, writing
    from fcmae.evaluation import evaluation_loader, extract_features, with_masks
    from fcmae.evaluation.tables import write_csv, write_parquet
    from fcmae.finetuning.loading import load_finetuned
    from fcmae.runs.loading import is_finetuning_run
    from fcmae.training.processes import choose_device
    from fcmae.weights.sources import (
        check_nothing_given,
        licence_notices,
        load_described_encoder,
    )

    path = Path(parsed.output)
    suffix = path.suffix.removeprefix(".")
    form = parsed.format or (suffix if suffix in FORMATS else "npz")
    if form not in FORMATS:
        raise ConfigError(f"--format: got {form!r}, expected one of {', '.join(FORMATS)}.")
    device = choose_device(parsed.device, setting="--device")
    given = {
        "model_name": parsed.model.name,
        "in_chans": parsed.data.in_chans,
        "stem_stride": parsed.model.stem_stride,
        "image_size": parsed.data.image_size,
    }
    if is_finetuning_run(parsed.source):
        check_nothing_given(parsed.source, **given)
        _, encoder, info = load_finetuned(parsed.source)
    else:
        encoder, info = load_described_encoder(parsed.source, **given)
    for notice in licence_notices(parsed.source, {"origin": info.origin}):
        print(notice)
    wanted = info.reading().wanted()
    images = open_images(parsed.images, parsed.label, where="IMAGES", wanted=wanted)
    if images.accounting is not None:
        print(account_sentence(images.accounting, used=len(images)))
    if images.labels is None:
        print(f"no labels: {', '.join(parsed.images)} {images.why_unlabelled}.")
    images, info = with_masks(images, info)
    loader = evaluation_loader(images, info, batch_size=parsed.batch_size, workers=parsed.workers)
    features = extract_features(encoder.to(device), loader, device)
    for file, reason in features.skipped:
        print(f"skipped {file!r}: {reason}")
    if features.num_with_holes:
        print(features.holes_sentence())
    with writing(f"--output: {parsed.output!r}"):
        if form == "npz":
            _write(path, features, images.classes, info.origin)
        else:
            write = write_csv if form == "csv" else write_parquet
            write(path, _columns(features, images.classes))
    count, width = features.vectors.shape
    print(f"{path}: features of {count} images, {width} numbers each.")


def _columns(features: Features, classes: tuple[str, ...] | None) -> dict[str, list[Any]]:
    """Return one row per image: file, label, problem, and the numbers f0, f1, ...

    Those that could not be read come last, with their reason and no numbers.
    """
    bad = len(features.skipped)
    columns: dict[str, list[Any]] = {
        "file": [*features.paths, *(file for file, _ in features.skipped)]
    }
    if classes is not None:
        labels = [classes[label] if label >= 0 else None for label in features.labels.tolist()]
        columns["label"] = [*labels, *[None] * bad]
    columns["problem"] = [*[""] * len(features.paths), *(reason for _, reason in features.skipped)]
    for number, column in enumerate(features.vectors.T.tolist()):
        columns[f"f{number}"] = [*column, *[None] * bad]
    return columns


def _write(path: Path, features: Features, classes: tuple[str, ...] | None, origin: str) -> None:
    import numpy as np

    from fcmae.runs.durable import write_atomically

    arrays: dict[str, Any] = {
        "features": features.vectors.numpy(),
        "files": np.array(features.paths, dtype=str),
        "skipped_files": np.array([file for file, _ in features.skipped], dtype=str),
    }
    if classes is not None:
        arrays |= {"labels": features.labels.numpy(), "classes": np.array(classes, dtype=str)}

    if origin:
        arrays["origin"] = np.array(origin)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:  # given a name, numpy would append .npz to others
            np.savez(file, **arrays)

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, write)
