"""`fcmae curate RUN|WEIGHTS IMAGES`: near duplicates, odd pictures, and what to label first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fcmae.settings.arguments import add_reading_options, make_output, new_parser, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from fcmae.reports.curation import Curation
    from fcmae.settings.words import Paths
    from fcmae.weights.encoder_info import EncoderInfo

SUMMARY = "find near duplicates and odd pictures of a folder, and which of them to label first"
NEIGHBOURS = 20  # the last of which says how odd a picture is
CANDIDATES = 5  # nearest ones of each view that may be copies of a picture
THRESHOLD, CORRELATION = 0.4, 0.7
THUMBNAIL_PX = 96
COMPARED_PX = 128  # of a picture whose pixels are looked at
PAIRS = 24


def run(arguments: list[str]) -> None:
    """Embed all images; write the page, the table and the lists that `data` settings take."""
    parser = new_parser("curate", SUMMARY)
    parser.add_argument("source", help="A run, a file of weights, timm/NAME or hf-hub:OWNER/NAME.")
    parser.add_argument("images", nargs="+", help="Images, folders, shards, lists of paths, elpv.")
    parser.add_argument("--output", type=str, default="curation", help="Folder to write into.")
    parser.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        help="Cosine of features from which two pictures may be near duplicates.",
    )
    parser.add_argument(
        "--correlation",
        type=float,
        default=CORRELATION,
        help="Of their pixels, from which these are near duplicates; 0 leaves it to the features.",
    )
    parser.add_argument("--label_first", type=int, default=100, help="Pictures to label first.")
    parser.add_argument("--exclude", type=str, help="Pattern of paths, or a .txt, to leave out.")
    parser.add_argument("--model.name", type=str, help="timm name, for weights that do not say it.")
    add_reading_options(parser)
    parsed = parse_arguments(parser, arguments)
    _check(parsed.threshold, parsed.correlation, parsed.label_first)

    make_output(parsed.output)
    found = curate(
        parsed.source,
        parsed.images,
        threshold=parsed.threshold,
        correlation=parsed.correlation,
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
    images: Paths,
    *,
    threshold: float = THRESHOLD,
    correlation: float = CORRELATION,
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
        threshold: cosine, above 0 up to 1, from which two pictures may be near duplicates.
        correlation: of their pixels, 0 to 1, from which they are; 0: the cosine alone decides.
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
    _check(threshold, correlation, label_first)

    import numpy as np
    import torch.nn.functional as F

    from fcmae.data import open_images
    from fcmae.data.survey import equal_files
    from fcmae.errors import DataError
    from fcmae.evaluation import curation as curated
    from fcmae.evaluation import evaluation_loader, extract_together, with_masks
    from fcmae.evaluation.copies import candidate_pairs, copy_views, looked_at
    from fcmae.evaluation.image_losses import ImageLosses
    from fcmae.evaluation.neighbours import Index, Whitening, centred, nearest_neighbours
    from fcmae.reports.curation import Curation
    from fcmae.runs.loading import is_pretraining_run, load_run
    from fcmae.settings.words import names_of
    from fcmae.training.processes import choose_device
    from fcmae.weights.sources import licence_notices, load_described_encoder

    names = names_of(images)
    listed = open_images(names, where="IMAGES", exclude=exclude)
    on = choose_device(device)
    encoder, info = load_described_encoder(os.fspath(source), model_name=model)
    weights = os.fspath(source)
    notices = licence_notices(weights, {"origin": info.origin})
    for notice in notices:
        print(notice)
    listed, info = with_masks(listed, info)
    loader = evaluation_loader(listed, info, batch_size=batch_size, workers=workers)
    encoder = encoder.to(on)
    describers = {"encoder": encoder, **copy_views(encoder)}
    if is_pretraining_run(weights):
        describers["losses"] = ImageLosses(load_run(weights).model.to(on))
    described = extract_together(describers, loader, on)
    features = described["encoder"]
    if len(features.paths) < 3:
        raise DataError(
            f"IMAGES: {len(features.paths)} pictures can be decoded; expected 3 or more."
        )
    place = {path: index for index, path in enumerate(features.paths)}
    equal = [[place[path] for path in group] for group in equal_files(features.paths)]
    white = Whitening.of(described["even"].vectors)
    even, closer = (F.normalize(white(described[n].vectors), dim=1) for n in ("even", "closer"))
    index = Index(even)
    found_near = [index.nearest(view, CANDIDATES) for view in (even, closer)]
    pairs = candidate_pairs(found_near, threshold)
    if correlation:
        pairs = looked_at(pairs, _looks(features.paths, info))
        copied = pairs.places[pairs.correlation >= correlation]
        shown = curated.pairs_at(pairs, pairs.correlation, correlation, PAIRS)
    else:
        copied = pairs.places
        more = candidate_pairs(found_near, threshold / 2)
        shown = curated.pairs_at(more, more.cosine, threshold, PAIRS)
    vectors = centred(features.vectors)
    neighbours = nearest_neighbours(features.vectors, NEIGHBOURS)
    groups = curated.near_duplicate_groups(copied, len(vectors), equal)
    scores = curated.oddness(neighbours)
    odd = curated.outlying(scores)
    losses = described["losses"].vectors[:, 0].numpy() if "losses" in described else None
    copies = [index for group in groups for index in group[1:]]
    return Curation(
        title=", ".join(names),
        source=". ".join([weights, *(notice.rstrip(".") for notice in notices)]),
        paths=features.paths,
        threshold=threshold,
        correlation=correlation,
        num_candidates=len(pairs.places),
        groups=groups,
        num_exact=sum(len(group) - 1 for group in equal),
        scores=scores,
        odd=odd,
        losses=losses,
        worst=np.zeros(0, np.int64) if losses is None else curated.outlying(losses),
        order=curated.labelling_order(vectors, label_first, [*copies, *odd.tolist()]),
        near_threshold=shown,
        positions=curated.map_positions(features.vectors),
        is_exact=neighbours.is_exact,
        skipped=features.skipped,
        thumbnail=_thumbnails(info),
    )


def _check(threshold: float, correlation: float, label_first: int) -> None:
    from fcmae.errors import ConfigError

    if not 0 < threshold <= 1:
        raise ConfigError(f"--threshold: got {threshold:g}, expected more than 0 up to 1.")
    if not 0 <= correlation <= 1:
        raise ConfigError(f"--correlation: got {correlation:g}, expected 0 to 1.")
    if label_first < 0:
        raise ConfigError(f"--label_first: got {label_first}, expected 0 or more.")


def _looks(paths: Sequence[str], info: EncoderInfo) -> Callable[[int], Tensor | None]:
    """Return what reads a picture for a comparison of pixels, [C, H, W]."""
    read = _reads((COMPARED_PX, COMPARED_PX), info)
    return lambda index: read(paths[index])


def _thumbnails(info: EncoderInfo) -> Callable[[str], np.ndarray | None]:
    """Return what shows a file as uint8 [H, W, 3]: its first three channels, or one as grey."""
    import numpy as np

    read = _reads((THUMBNAIL_PX, THUMBNAIL_PX), info)

    def thumbnail(path: str) -> np.ndarray | None:
        picture = read(path)
        if picture is None:
            return None
        image = picture.clamp(0, 1).numpy()
        shown = image[:3] if len(image) >= 3 else image[:1].repeat(3, axis=0)
        return (shown.transpose(1, 2, 0) * 255).round().astype(np.uint8)

    return thumbnail


def _reads(size: tuple[int, int], info: EncoderInfo) -> Callable[[str], Tensor | None]:
    """Return what reads a file as [C, height, width] in 0..1; None where it cannot any more."""
    from fcmae.data import EvaluationTransform, UndecodableImageError, decode

    zeros, ones = (0.0,) * info.in_chans, (1.0,) * info.in_chans
    transform = EvaluationTransform(size, mean=zeros, std=ones)
    reading = info.reading()

    def read(path: str) -> Tensor | None:
        try:
            picture = transform.prepare(decode(path, reading, transform.choose_part))
        except UndecodableImageError:
            return None
        return picture.image.float()

    return read
