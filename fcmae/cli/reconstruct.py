"""`fcmae reconstruct RUN IMAGES...`: pictures of what a pretrained model makes of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcmae.settings.arguments import add_reading_options, new_parser, parse_arguments

if TYPE_CHECKING:
    from fcmae.model.autoencoder import FCMAE

SUMMARY = "draw original, masked and reconstructed images as PNG grids"
ROWS = 6  # images in one PNG


def run(arguments: list[str]) -> None:
    """Draw PNG grids and print where they are."""
    parser = new_parser("reconstruct", SUMMARY)
    parser.add_argument("run", help="Folder of a pretraining run.")
    parser.add_argument("images", nargs="+", help="Images, folders, or elpv.")
    parser.add_argument("--output", type=str, help="Folder; default RUN/reconstructions.")
    parser.add_argument("--mask.ratio", type=float, help="Share to hide; default as in the run.")
    parser.add_argument("--seed", type=int, default=0, help="Which patches are hidden.")
    parser.add_argument("--limit", type=int, default=48, help="Largest number of images drawn.")
    add_reading_options(parser)
    parser.set_defaults({"batch_size": ROWS})
    parsed = parse_arguments(parser, arguments)

    import torch

    from fcmae.data import open_images, sample_seed
    from fcmae.errors import ConfigError, DataError, writing
    from fcmae.evaluation import evaluation_loader, with_masks
    from fcmae.evaluation.pictures import draw_reconstructions
    from fcmae.model.masking import draw_visible, num_visible_patches
    from fcmae.runs.folder import RunFolder
    from fcmae.runs.loading import load_run
    from fcmae.training.processes import choose_device
    from fcmae.weights.encoder_info import EncoderInfo

    if parsed.limit < 1:
        raise ConfigError(f"--limit: got {parsed.limit}, expected 1 or more.")
    device = choose_device(parsed.device, setting="--device")
    config, model, step = load_run(parsed.run)
    ratio = config.mask.ratio if parsed.mask.ratio is None else parsed.mask.ratio
    num_visible_patches(model.num_patches, ratio)  # an impossible ratio is an error before reading
    model.to(device)
    info = EncoderInfo.of_run(config, model, step)
    images = open_images(parsed.images, where="IMAGES", wanted=info.reading().wanted())
    folder = Path(parsed.output) if parsed.output else RunFolder(parsed.run).reconstructions
    images, info = with_masks(images, info)
    if len(images) > parsed.limit:
        print(f"Drawing the first {parsed.limit} of {len(images)} images (--limit).")
        images = images.select(range(parsed.limit))
    loader = evaluation_loader(
        images, info, batch_size=parsed.batch_size, workers=min(parsed.workers, len(images))
    )
    drawn = 0
    for number, batch in enumerate(loader, start=1):
        for path, reason in batch["skipped"]:
            print(f"skipped {path!r}: {reason}")
        if not batch["path"]:
            continue
        batch = _drawable(batch, model, ratio)
        if not batch["path"]:
            continue
        valid = batch.get("valid")
        visible = []
        for row, index in enumerate(batch["index"].tolist()):
            rng = torch.Generator().manual_seed(sample_seed(parsed.seed, "mask", 0, index))
            patches = None if valid is None else model.valid_patches(valid[row : row + 1])
            visible.append(draw_visible(1, model.num_patches, ratio, rng, patches))
        picture = folder / f"images-{number:04d}.png"
        names = [Path(path).name for path in batch["path"]]
        with writing(f"--output: {picture}", "name another folder"):
            draw_reconstructions(
                model,
                batch["image"],
                torch.cat(visible),
                info.mean,
                info.std,
                picture,
                names,
                valid,
            )
        drawn += len(batch["path"])
        print(picture)
    if not drawn:
        raise DataError(f"none of the {len(images)} images could be decoded, nothing is drawn.")
    print(f"{drawn} images reconstructed by the model after {step} steps.")


def _drawable(batch: dict[str, Any], model: FCMAE, ratio: float) -> dict[str, Any]:
    """Return the images of a batch with enough data to show some and hide some; name the others."""
    import torch

    from fcmae.model.masking import num_visible_patches

    if "valid" not in batch:
        return batch
    needed = num_visible_patches(model.num_patches, ratio) + 1
    counts = model.valid_patches(batch["valid"]).sum(dim=1).tolist()
    for path, count in zip(batch["path"], counts, strict=True):
        if count < needed:
            print(f"skipped {path!r}: has data in {count} patches, and {needed} are needed")
    kept = [row for row, count in enumerate(counts) if count >= needed]
    rows = torch.tensor(kept, dtype=torch.long)
    chosen = {name: batch[name][rows] for name in ("image", "valid", "index")}
    return {**chosen, "path": [batch["path"][row] for row in kept]}
