"""`fcmae predict RUN IMAGES --output FILE|FOLDER`: classes of images, or of their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

if TYPE_CHECKING:
    from fcmae.data import ImageList
    from fcmae.evaluation.mask_prediction import TrainedSegmenter

SUMMARY = "classify images with a fine-tuned run: a row per image in a CSV, or masks and overlays"
FILE_NAME = "predictions.csv"  # in a folder


def run(arguments: list[str]) -> None:
    """Write one row per image, in their order, and say which could not be read."""
    parser = new_parser("predict", SUMMARY)
    parser.add_argument("source", help="Folder of a fine-tuning run, or what it has exported.")
    parser.add_argument("images", nargs="+", help="Images, folders, lists of paths, or elpv.")
    parser.add_argument(
        "--output",
        type=str,
        required=True,
        help=f"A .csv file, or a folder for {FILE_NAME}; a folder for masks.",
    )
    parser.add_argument(
        "--top", type=int, help="Write so many most probable classes instead of all."
    )
    add_reading_options(parser)
    parsed = parse_arguments(parser, arguments)

    from fcmae.data import open_images
    from fcmae.data.accounting import account_sentence
    from fcmae.errors import ConfigError, writing
    from fcmae.evaluation.mask_prediction import TrainedSegmenter
    from fcmae.evaluation.prediction import load
    from fcmae.evaluation.tables import write_csv
    from fcmae.training.processes import choose_device

    if parsed.top is not None and parsed.top < 1:
        raise ConfigError(f"--top: got {parsed.top}, expected 1 or more classes.")
    model = load(parsed.source, choose_device(parsed.device, setting="--device"))
    wanted = model.info.reading().wanted()
    images = open_images(parsed.images, where="IMAGES", wanted=wanted)
    if images.accounting is not None:
        print(account_sentence(images.accounting, used=len(images)))
    if isinstance(model, TrainedSegmenter):
        _write_masks(model, images, parsed)
        return
    path = Path(parsed.output)
    if path.suffix != ".csv":
        path /= FILE_NAME
    found = model.predict(
        images, batch_size=parsed.batch_size, workers=parsed.workers, is_bar_shown=True
    )
    with writing(f"--output: {parsed.output!r}"):
        write_csv(path, found.table(parsed.top))
    for file, reason in found.problems.items():
        print(f"no prediction for {file!r}: {reason}")
    count = len(found.files) - len(found.problems)
    print(
        f"{path}: {count} of {len(found.files)} images classified, {len(found.problems)} that "
        "cannot be used have their reason in the column problem."
    )


def _write_masks(model: TrainedSegmenter, images: ImageList, parsed: Any) -> None:
    """Write a mask and an overlay per picture, and the table of them."""
    from fcmae.errors import ConfigError, writing
    from fcmae.evaluation.tables import write_csv

    if parsed.top is not None:
        raise ConfigError("--top: is for classifiers, and this model names a class per pixel.")
    folder = Path(parsed.output)
    if folder.suffix == ".csv":
        raise ConfigError(
            f"--output: got {parsed.output!r}, and masks are files; expected a folder for them."
        )
    with writing(f"--output: {parsed.output!r}", "name another folder"):
        found = model.predict_into(
            folder,
            images,
            batch_size=parsed.batch_size,
            workers=parsed.workers,
            is_bar_shown=True,
        )
        write_csv(folder / FILE_NAME, found.table())
    for file, reason in found.problems.items():
        print(f"no mask for {file!r}: {reason}")
    count = len(found.files) - len(found.problems)
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(found.classes))
    print(
        f"{folder}: masks and overlays of {count} of {len(found.files)} pictures, {FILE_NAME} with "
        f"a row for each; values of the masks: {numbered}."
    )
