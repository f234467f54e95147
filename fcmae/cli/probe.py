"""`fcmae probe RUN DATA`: what the frozen features know, beside an untrained encoder's."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from fcmae.errors import CheckpointError
from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

if TYPE_CHECKING:
    from timm.models.convnext import ConvNeXt

    from fcmae.data import ImageList
    from fcmae.evaluation.protocol import Scores
    from fcmae.weights.encoder_info import EncoderInfo

NORMED = "pretrained, normed"
SUMMARY = "kNN and linear probe: pretrained, untrained and raw pixels side by side"


def run(arguments: list[str]) -> None:
    """Print balanced accuracies over several label draws and what they allow to say."""
    carry_out(arguments)


def carry_out(arguments: list[str]) -> Scores:
    """Do what a command line says, print the table, and return the scores."""
    parser = new_parser("probe", SUMMARY)
    parser.add_argument("run", help="Folder of a run.")
    parser.add_argument("data", help="Folder of class folders, or elpv.")
    parser.add_argument("--label", type=str, help="Label of elpv: type or defect.")
    parser.add_argument("--labels", type=int, default=200, help="Labelled images per draw.")
    parser.add_argument("--draws", type=int, default=5, help="Draws of labelled images, 3 or more.")
    parser.add_argument("--group", type=str, help="As data.group, which it is by default.")
    parser.add_argument("--seed", type=int, default=0, help="Which images are drawn.")
    parser.add_argument(
        "--save",
        type=str,
        help="File.safetensors for the linear probe of all labels, as a classifier of timm.",
    )
    add_reading_options(parser)
    parsed = parse_arguments(parser, arguments)

    from fcmae.data import EvaluationTransform, open_images
    from fcmae.data.splits import with_labels
    from fcmae.errors import DataError
    from fcmae.evaluation import (
        check_draws,
        choose_scored,
        evaluation_loader,
        extract_together,
        score_features,
        sides_of,
        summary,
        thumbnails,
        with_masks,
    )
    from fcmae.evaluation.probe_classifier import check_file, normed, save_classifier
    from fcmae.runs.loading import is_finetuning_run
    from fcmae.training.processes import choose_device

    check_draws(parsed.labels, parsed.draws)
    if parsed.save is not None:
        check_file(parsed.save)
    device = choose_device(parsed.device, setting="--device")
    known = (_finetuned if is_finetuning_run(parsed.run) else _pretrained)(parsed.run)
    wanted = known.info.reading().wanted()
    images = open_images(parsed.data, parsed.label, where="DATA", wanted=wanted)
    images = with_labels(images, "DATA", parsed.data)
    assert images.labels is not None
    indices, told = choose_scored(images.labels, wanted=parsed.labels, seed=parsed.seed)
    if not len(indices):
        raise DataError(f"DATA: {parsed.data!r} cannot be scored: {told}")
    images, info = with_masks(images.select(indices), known.info)
    group = parsed.group or known.group
    images, sides = sides_of(images, group, is_asked=parsed.group is not None)
    loader = evaluation_loader(images, info, batch_size=parsed.batch_size, workers=parsed.workers)
    on_device = {name: encoder.to(device) for name, encoder in known.encoders.items()}
    features = extract_together({**on_device, "raw pixels": thumbnails}, loader, device)
    name, *baselines = features
    for path, reason in features[name].skipped:
        print(f"skipped {path!r}: {reason}")
    if features[name].num_with_holes:
        print(features[name].holes_sentence())
    for sentence in (*known.told, *_trained_on(parsed.run, images, known), *filter(None, [told])):
        print(sentence)
    if sides is not None:
        sides = sides.of_paths(images.paths, features[name].paths)
    encoder = known.encoders[name]
    if parsed.save is not None:  # what timm's last layer sees
        features[NORMED] = normed(encoder, features[name])
    scores = score_features(
        features, labels=parsed.labels, draws=parsed.draws, seed=parsed.seed, sides=sides
    )
    print(f"Frozen features of {parsed.run} after {info.steps} steps:")
    print(summary(scores, name, baselines))
    if parsed.save is not None:
        assert images.classes is not None
        print(
            f"A classifier of timm has a norm before its last layer: the one that is saved scores "
            f"as {NORMED!r}, linear."
        )
        transform = EvaluationTransform(info.image_size, mean=info.mean, std=info.std)
        print(
            save_classifier(
                encoder,
                features[NORMED],
                images.classes,
                info,
                parsed.save,
                crop_pct=transform.crop_pct,
            )
        )
    return scores


class _Known(NamedTuple):
    """A run's encoder, first, and those to compare it with: its start, and an untrained one.

    With how to feed them, the run's data.group, and what to say.
    """

    encoders: dict[str, ConvNeXt]
    info: EncoderInfo
    group: str | None
    told: list[str]


def _pretrained(run_dir: str) -> _Known:
    from fcmae.model.autoencoder import create_anywhere
    from fcmae.pretraining.start import load_start
    from fcmae.runs.folder import RunFolder
    from fcmae.runs.loading import load_run
    from fcmae.weights.encoder_info import EncoderInfo

    config, model, step = load_run(run_dir)
    found, told = {"pretrained": model.encoder}, []
    if config.model.init_from is not None:
        start = create_anywhere(config)
        try:
            load_start(start, config)
            found["its start"] = start.encoder
        except CheckpointError as error:
            told.append(f"the run's start is left out: {error}")
    found["untrained"] = create_anywhere(config).encoder
    info = EncoderInfo.of_run(config, model, step, RunFolder(run_dir).read_origin())
    return _Known(found, info, config.data.group, told)


def _finetuned(run_dir: str) -> _Known:
    from fcmae.finetuning.loading import load_finetuned
    from fcmae.finetuning.setup import create_classifier

    config, model, info = load_finetuned(run_dir)
    found, told = {"fine-tuned": model}, []
    classes = info.classes or tuple(map(str, range(model.num_classes)))
    if config.model.weights is not None:
        try:
            found["its start"] = create_classifier(config, classes)[0]
        except CheckpointError as error:
            told.append(f"the run's start is left out: {error}")
    scratch = replace(config, model=replace(config.model, weights=None, head_start="random"))
    found["untrained"] = create_classifier(scratch, classes)[0]
    return _Known(found, info, config.data.group, told)


def _trained_on(run_dir: str, images: ImageList, known: _Known) -> list[str]:
    """Say how many of the images taught a fine-tuned classifier their labels."""
    from fcmae.finetuning.opening import count_trained

    trained = count_trained(run_dir, images) if "fine-tuned" in known.encoders else 0
    if not trained:
        return []
    return [
        f"{trained} of the {len(images)} images trained this classifier with their labels: its "
        "scores on them say little about others."
    ]
