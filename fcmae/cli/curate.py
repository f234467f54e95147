"""`fcmae curate RUN|WEIGHTS IMAGES`: near duplicates, odd pictures, and what to label first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from fcmae.reports.curation import Curation
    from fcmae.weights.encoder_info import EncoderInfo

SUMMARY = "find near duplicates and odd pictures of a folder, and which of them to label first"
NEIGHBOURS = 20
THUMBNAIL_PX = 96
PAIRS = 24


def run(arguments: list[str]) -> None:
    """Embed all images; write the page, the table and the lists that `data` settings take."""
    parser = new_parser("curate", SUMMARY)
    parser.add_argument("source", help="A run, a file of weights, timm/NAME or hf-hub:OWNER/NAME.")
    parser.add_argument("images", nargs="+", help="Images, folders, shards, lists of paths, elpv.")
    parser.add_argument("--output", type=str, default="curation", help="Folder to write into.")
    parser.add_argument(
        "--threshold", type=float, default=0.95, help="Cosine from which two are near duplicates."
    )
    parser.add_argument("--label_first", type=int, default=100, help="Pictures to label first.")
    parser.add_argument("--exclude", type=str, help="Pattern of paths, or a .txt, to leave out.")
    parser.add_argument("--model.name", type=str, help="timm name, for weights that do not say it.")
    add_reading_options(parser)
    parsed = parse_arguments(parser, arguments)
    _check(parsed.threshold, parsed.label_first)

    from fcmae.errors import ConfigError

    try:
        Path(parsed.output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {parsed.output!r} cannot be made ({error.strerror}); name another folder."
        ) from error
    found = curate(
        parsed.source,
        parsed.images,
        threshold=parsed.threshold,
        label_first=parsed.label_first,
        exclude=parsed.exclude,
        model=parsed.model.name,
        batch_size=parsed.batch_size,
        workers=parsed.workers,
        device=parsed.device,
    )
    *lists, table, page = found.save(parsed.output)
    print("\n".join(found.sentences))
    for file, reason in found.skipped[:5]:
        print(f"skipped {file!r}: {reason}")
    print(f"{page} written, and beside it {', '.join(file.name for file in lists)}, {table.name}.")


def curate(
    source: str | os.PathLike[str],
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    threshold: float = 0.95,
    label_first: int = 100,
    exclude: str | None = None,
    model: str | None = None,
    batch_size: int = 32,
    workers: int = 0,
    device: str = "auto",
) -> Curation:
    """Find near duplicates, odd pictures and what to label first, as `fcmae curate` does.

    Args:
        source: a run, a file of weights, timm/NAME or hf-hub:OWNER/NAME.
        images: a folder, shards, a list of paths, elpv, or several of these.
        threshold: cosine, above 0 up to 1, from which two pictures are near duplicates.
        label_first: how many pictures to label first.
        exclude: pattern of paths, or a .txt of them, to leave out.
        model: timm's name, for weights that do not say it.
        batch_size: images at a time; changes no number.
        workers: reading processes.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        What was found, with `near_duplicates`, `odd_pictures` and `label_first` as paths, `scores`
        of oddness [N] of `paths`, and `save()`, which writes the page, a table and lists.

    Raises:
        ConfigError: numbers that cannot be, a source that is none, or no images.
        CheckpointError: weights that cannot be read.
        DataError: fewer than 3 pictures that can be decoded.
    """
    _check(threshold, label_first)

    import torch.nn.functional as F

    from fcmae.data import open_images
    from fcmae.data.survey import equal_files
    from fcmae.errors import DataError
    from fcmae.evaluation import curation as curated
    from fcmae.evaluation import evaluation_loader, extract_features, with_masks
    from fcmae.evaluation.neighbours import nearest_neighbours, whitened
    from fcmae.reports.curation import Curation
    from fcmae.training.processes import choose_device
    from fcmae.weights.sources import load_described_encoder

    several = [images] if isinstance(images, (str, os.PathLike)) else images
    names = [os.fspath(path) for path in several]
    listed = open_images(names, where="IMAGES", exclude=exclude)
    on = choose_device(device)
    encoder, info = load_described_encoder(os.fspath(source), model_name=model)
    listed, info = with_masks(listed, info)
    loader = evaluation_loader(listed, info, batch_size=batch_size, workers=workers)
    features = extract_features(encoder.to(on), loader, on)
    if len(features.paths) < 3:
        raise DataError(
            f"IMAGES: {len(features.paths)} pictures can be decoded; expected 3 or more."
        )
    white = whitened(features.vectors)
    vectors = F.normalize(white, dim=1)
    neighbours = nearest_neighbours(vectors, NEIGHBOURS)
    place = {path: index for index, path in enumerate(features.paths)}
    equal = [[place[path] for path in group] for group in equal_files(features.paths)]
    groups = curated.near_duplicate_groups(neighbours, threshold, equal)
    scores = curated.oddness(white)
    odd = curated.odd_pictures(scores)
    copies = [index for group in groups for index in group[1:]]
    return Curation(
        title=", ".join(names),
        source=os.fspath(source),
        paths=features.paths,
        threshold=threshold,
        groups=groups,
        num_exact=sum(len(group) - 1 for group in equal),
        scores=scores,
        odd=odd,
        order=curated.labelling_order(vectors, label_first, [*copies, *odd.tolist()]),
        near_threshold=curated.pairs_at(neighbours, threshold, PAIRS),
        positions=curated.map_positions(features.vectors),
        is_exact=neighbours.is_exact,
        skipped=features.skipped,
        thumbnail=_thumbnails(info),
    )


def _check(threshold: float, label_first: int) -> None:
    from fcmae.errors import ConfigError

    if not 0 < threshold <= 1:
        raise ConfigError(f"--threshold: got {threshold:g}, expected more than 0 up to 1.")
    if label_first < 0:
        raise ConfigError(f"--label_first: got {label_first}, expected 0 or more.")


def _thumbnails(info: EncoderInfo) -> Callable[[str], np.ndarray | None]:
    """Return what shows a file as uint8 [H, W, 3]: its first three channels, or one as grey."""
    import numpy as np

    from fcmae.data import EvaluationTransform, UndecodableImageError, decode

    zeros, ones = (0.0,) * info.in_chans, (1.0,) * info.in_chans
    transform = EvaluationTransform((THUMBNAIL_PX, THUMBNAIL_PX), mean=zeros, std=ones)
    reading = info.reading()

    def thumbnail(path: str) -> np.ndarray | None:
        try:
            picture = transform.prepare(decode(path, reading, transform.choose_part))
        except UndecodableImageError:
            return None
        image = picture.image.float().clamp(0, 1).numpy()
        shown = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
        return (shown.transpose(1, 2, 0) * 255).round().astype(np.uint8)

    return thumbnail
