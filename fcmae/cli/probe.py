"""`fcmae probe RUN DATA`: what the frozen features know, beside an untrained encoder's."""

from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

NORMED = "pretrained, normed"
SUMMARY = "kNN and linear probe: pretrained, untrained and raw pixels side by side"


def run(arguments: list[str]) -> None:
    """Print balanced accuracies over several label draws and what they allow to say."""
    parser = new_parser("probe", SUMMARY)
    parser.add_argument("run", help="Folder of a pretraining run.")
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

    import torch

    from fcmae.data import EvaluationTransform, Reading, open_images
    from fcmae.data.splits import with_labels
    from fcmae.evaluation import (
        check_draws,
        evaluation_loader,
        extract_together,
        score_features,
        sides_of,
        summary,
        thumbnails,
        with_masks,
    )
    from fcmae.evaluation.probe_classifier import check_file, normed, save_classifier
    from fcmae.model.autoencoder import create_model
    from fcmae.runs.folder import RunFolder
    from fcmae.runs.loading import load_run
    from fcmae.training.processes import choose_device
    from fcmae.weights.encoder_info import EncoderInfo

    check_draws(parsed.labels, parsed.draws)
    if parsed.save is not None:
        check_file(parsed.save)
    device = choose_device(parsed.device)
    config, model, step = load_run(parsed.run)
    wanted = Reading.of_settings(config.data).wanted()
    images = open_images(parsed.data, parsed.label, where="DATA", wanted=wanted)
    images = with_labels(images, "DATA", parsed.data)
    info = EncoderInfo.of_run(config, model, step, RunFolder(parsed.run).read_origin())
    images, info = with_masks(images, info)
    group = parsed.group or config.data.group
    images, sides = sides_of(images, group, is_asked=parsed.group is not None)
    loader = evaluation_loader(images, info, batch_size=parsed.batch_size, workers=parsed.workers)
    features = extract_together(
        {
            "pretrained": model.encoder.to(device),
            "untrained": create_model(config).encoder.to(device),  # the run's own start
            "raw pixels": thumbnails,
        },
        loader,
        device,
    )
    for path, reason in features["pretrained"].skipped:
        print(f"skipped {path!r}: {reason}")
    if features["pretrained"].num_with_holes:
        print(features["pretrained"].holes_sentence())
    if sides is not None:
        places = {path: place for place, path in enumerate(images.paths)}
        kept = [places[path] for path in features["pretrained"].paths]
        sides = sides.select(torch.tensor(kept))
    if parsed.save is not None:  # what timm's last layer sees
        features[NORMED] = normed(model.encoder, features["pretrained"])
    scores = score_features(
        features, labels=parsed.labels, draws=parsed.draws, seed=parsed.seed, sides=sides
    )
    print(f"Frozen features of {parsed.run} after {step} steps:")
    print(summary(scores, "pretrained", ("untrained", "raw pixels")))
    if parsed.save is not None:
        assert images.classes is not None
        print(
            f"A classifier of timm has a norm before its last layer: the one that is saved scores "
            f"as {NORMED!r}, linear."
        )
        transform = EvaluationTransform(info.image_size, mean=info.mean, std=info.std)
        print(
            save_classifier(
                model.encoder,
                features[NORMED],
                images.classes,
                info,
                parsed.save,
                crop_pct=transform.crop_pct,
            )
        )
