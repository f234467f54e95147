"""`fcmae curate RUN|WEIGHTS IMAGES`: near duplicates, odd pictures, and what to label first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

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

    from fcmae.errors import ConfigError, DataError

    if not 0 < parsed.threshold <= 1:
        raise ConfigError(f"--threshold: got {parsed.threshold:g}, expected more than 0 up to 1.")
    if parsed.label_first < 0:
        raise ConfigError(f"--label_first: got {parsed.label_first}, expected 0 or more.")

    import torch.nn.functional as F

    from fcmae.data import open_images
    from fcmae.data.survey import equal_files
    from fcmae.evaluation import curation as curated
    from fcmae.evaluation import evaluation_loader, extract_features, with_masks
    from fcmae.evaluation.neighbours import nearest_neighbours, whitened
    from fcmae.reports.curation import Curation, curation_csv, curation_document, summary
    from fcmae.reports.html import to_html
    from fcmae.runs.durable import write_text
    from fcmae.training.processes import choose_device
    from fcmae.weights.sources import load_described_encoder

    folder = Path(parsed.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {parsed.output!r} cannot be made ({error.strerror}); name another folder."
        ) from error
    images = open_images(parsed.images, where="IMAGES", exclude=parsed.exclude)
    device = choose_device(parsed.device)
    encoder, info = load_described_encoder(parsed.source, model_name=parsed.model.name)
    images, info = with_masks(images, info)
    loader = evaluation_loader(images, info, batch_size=parsed.batch_size, workers=parsed.workers)
    features = extract_features(encoder.to(device), loader, device)
    if len(features.paths) < 3:
        raise DataError(
            f"IMAGES: {len(features.paths)} pictures can be decoded; expected 3 or more."
        )
    white = whitened(features.vectors)
    vectors = F.normalize(white, dim=1)
    neighbours = nearest_neighbours(vectors, NEIGHBOURS)
    place = {path: index for index, path in enumerate(features.paths)}
    equal = [[place[path] for path in group] for group in equal_files(features.paths)]
    groups = curated.near_duplicate_groups(neighbours, parsed.threshold, equal)
    scores = curated.oddness(white)
    odd = curated.odd_pictures(scores)
    copies = [index for group in groups for index in group[1:]]
    found = Curation(
        title=", ".join(parsed.images),
        source=parsed.source,
        paths=features.paths,
        threshold=parsed.threshold,
        groups=groups,
        num_exact=sum(len(group) - 1 for group in equal),
        scores=scores,
        odd=odd,
        order=curated.labelling_order(vectors, parsed.label_first, [*copies, *odd.tolist()]),
        near_threshold=curated.pairs_at(neighbours, parsed.threshold, PAIRS),
        positions=curated.map_positions(features.vectors),
        is_exact=neighbours.is_exact,
        skipped=features.skipped,
    )
    lists = {
        "near_duplicates.txt": (found.copies, "all of a group but one; data.exclude takes it"),
        "odd.txt": (odd.tolist(), "the oddest first; look before data.exclude takes it"),
        "label_first.txt": (found.order, "in the order of labelling; data.path takes it"),
    }
    told = [f"{name}: {len(which):,} files, {what}." for name, (which, what) in lists.items()]
    page = curation_document(found, _thumbnails(info), [*told, "curation.csv: every picture."])
    texts = {
        name: "".join(f"{Path(found.paths[index]).absolute()}\n" for index in which)
        for name, (which, _) in lists.items()
    }
    texts |= {"curation.csv": curation_csv(found), "curation.html": to_html(page)}
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise ConfigError(
            f"--output: {parsed.output!r} cannot be written ({error.strerror}); name another one."
        ) from error
    print("\n".join(summary(found)))
    for file, reason in features.skipped[:5]:
        print(f"skipped {file!r}: {reason}")
    print(f"{folder / 'curation.html'} written, and beside it {', '.join(lists)}, curation.csv.")


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
