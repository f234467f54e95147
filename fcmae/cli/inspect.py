"""`fcmae inspect FOLDER...`: what is in a set of files, what is wrong with it, how to read it."""

from pathlib import Path

from fcmae.settings.arguments import new_parser, parse_arguments

ALL = 256  # processes, of which no more are started than there are cores
SUMMARY = "look at every file of a set: a page about it, and a configuration that reads it right"


def run(arguments: list[str]) -> None:
    """Read all headers and a sample of pixels; print and write what they say."""
    from fcmae.errors import ConfigError

    parser = new_parser("inspect", SUMMARY)
    parser.add_argument("paths", nargs="+", help="Folders, shards, lists, tables, or elpv.")
    parser.add_argument("--output", type=str, default="inspection.html", help="The page to write.")
    parser.add_argument("--write", type=str, help="YAML to write: settings for this set.")
    parser.add_argument("--pixels", type=int, default=2000, help="Files to decode, evenly spread.")
    parser.add_argument("--workers", type=int, default=ALL, help="Processes; all cores at most.")
    parser.add_argument("--exclude", type=str, help="Pattern of paths, or a .txt, to leave out.")
    parsed = parse_arguments(parser, arguments)
    if parsed.pixels < 1:
        raise ConfigError(f"fcmae inspect: --pixels: got {parsed.pixels}, expected 1 or more.")

    import os

    from fcmae.data import open_images
    from fcmae.data.advice import advise
    from fcmae.data.survey import survey
    from fcmae.machine.hardware import num_cores
    from fcmae.reports.html import to_html
    from fcmae.reports.inspection import inspection_document, inspection_of, summary, to_config
    from fcmae.runs.durable import write_text
    from fcmae.settings.pretrain import PretrainConfig
    from fcmae.settings.reading import load

    images = open_images(parsed.paths, where="PATHS", exclude=parsed.exclude)
    count = min(parsed.pixels, len(images))
    sampled = (number * len(images) // count for number in range(count))
    looks = survey(images.paths, sampled=sampled, workers=min(parsed.workers, num_cores()))
    title = ", ".join(parsed.paths)
    found = inspection_of(title, images, looks, advise(looks, cores=num_cores()))
    print("\n".join(summary(found)))
    try:
        Path(parsed.output).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(parsed.output), to_html(inspection_document(found)))
    except OSError as error:
        raise ConfigError(
            f"--output: {parsed.output!r} cannot be written ({error.strerror}); name another file."
        ) from error
    print(f"{parsed.output} written.")
    if parsed.write is None or found.advice is None:
        return
    target = Path(parsed.write)
    is_elpv = parsed.paths == ["elpv"]
    text = to_config(
        found.advice,
        parsed.paths,
        f"runs/{target.stem}",
        (lambda path: path) if is_elpv else os.path.abspath,
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as error:
        raise ConfigError(
            f"--write: {parsed.write!r} cannot be written ({error.strerror}); name another file."
        ) from error
    load(PretrainConfig, target)
    print(f"{parsed.write} written; next: fcmae pretrain --config {parsed.write}")
