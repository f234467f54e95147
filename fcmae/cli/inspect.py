"""`fcmae inspect FOLDER...`: what is in a set of files, what is wrong with it, how to read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fcmae.settings.arguments import new_parser, parse_arguments

if TYPE_CHECKING:
    from fcmae.reports.inspection import Inspection
    from fcmae.settings.words import Paths

ALL = 256  # processes, of which no more are started than there are cores
PIXELS = 2000
SUMMARY = "look at every file of a set: a page about it, and a configuration that reads it right"


def run(arguments: list[str]) -> None:
    """Read all headers and a sample of pixels; print and write what they say."""
    parser = new_parser("inspect", SUMMARY)
    parser.add_argument("paths", nargs="+", help="Folders, shards, lists, tables, or elpv.")
    parser.add_argument("--output", type=str, default="inspection.html", help="The page to write.")
    parser.add_argument("--write", type=str, help="YAML to write: settings for this set.")
    parser.add_argument(
        "--pixels", type=int, default=PIXELS, help="Files to decode, evenly spread."
    )
    parser.add_argument("--workers", type=int, default=ALL, help="Processes; all cores at most.")
    parser.add_argument("--exclude", type=str, help="Pattern of paths, or a .txt, to leave out.")
    parsed = parse_arguments(parser, arguments)
    found = inspect(
        parsed.paths, pixels=parsed.pixels, workers=parsed.workers, exclude=parsed.exclude
    )
    print("\n".join(found.sentences))
    for file, next_step in zip(
        found.save(parsed.output, parsed.write),
        ("", f"; next: fcmae pretrain --config {parsed.write}"),
        strict=False,
    ):
        print(f"{file} written{next_step or '.'}")


def inspect(
    paths: Paths,
    *,
    pixels: int = PIXELS,
    workers: int = ALL,
    exclude: str | None = None,
) -> Inspection:
    """Look at every file of a set, as `fcmae inspect` does; nothing is written.

    Args:
        paths: a folder, shards, a list of paths, a table, elpv, or several of these.
        pixels: files to decode, evenly spread; the headers of all are read.
        workers: processes, no more than there are cores; 0 looks in this one.
        exclude: pattern of paths, or a .txt of them, to leave out.

    Returns:
        What was found, with `sentences`, `problems`, `exact` and `near` duplicates, `settings`
        for `fcmae.pretrain(config=...)`, and `save()`, which writes the page and a YAML.

    Raises:
        ConfigError: paths that do not exist or hold no images, or numbers that cannot be.
        DataError: a process died of a file.
    """
    from fcmae.errors import ConfigError

    if pixels < 1:
        raise ConfigError(f"fcmae inspect: --pixels: got {pixels}, expected 1 or more.")

    from fcmae.data import open_images
    from fcmae.data.advice import advise
    from fcmae.data.survey import survey
    from fcmae.machine.hardware import num_cores
    from fcmae.reports.inspection import inspection_of
    from fcmae.settings.words import names_of

    names = names_of(paths)
    images = open_images(names, where="PATHS", exclude=exclude)
    count = min(pixels, len(images))
    sampled = (number * len(images) // count for number in range(count))
    looks = survey(images.paths, sampled=sampled, workers=min(workers, num_cores()))
    return inspection_of(names, images, looks, advise(looks, cores=num_cores()))
