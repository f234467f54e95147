"""The model card of an exported folder: what a run says of itself, for whoever gets the weights."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fcmae import __version__
from fcmae.data.recorded import read_paths
from fcmae.errors import CheckpointError, DiskError
from fcmae.runs.folder import RunFolder
from fcmae.runs.metrics import read_metrics
from fcmae.weights.encoder_info import EncoderInfo

CARD = "README.md"
PICTURES = ("loss_curve.png", "health.png", "confusion_matrix.png")  # of the run, copied beside
_NON_COMMERCIAL = "CC-BY-NC 4.0"
# Settings that name places of the machine that trained; the card shows their last part.
_PLACES = {"dir", "path", "val_path", "cache", "exclude", "init_from", "weights", "reader"}
_FED = {  # what of EncoderInfo says how images become input
    "in_chans": "channels",
    "image_size": "height, width (px)",
    "mean": "mean of values in 0..1",
    "std": "standard deviation",
    "value_range": "black, white of the files' own values",
    "bands": "bands of a file that are the channels",
    "background": "colour below transparent pixels",
    "reader": "reader of files",
    "invalid": "value that means no data",
    "valid_mask": "masks beside the pictures",
    "crop_pct": "share of a side kept by evaluation",
}


def card_files(
    info: EncoderInfo, metadata: Mapping[str, str], run: RunFolder | None
) -> dict[str, bytes]:
    """Return the content of README.md, and of the run's pictures that it shows, by name.

    Args:
        info: of the weights.
        metadata: texts that travel with them; the scores of a classifier are among them.
        run: whose files tell of data, settings, curve, health and scores; None for weights
            that were found outside of any.
    """
    files: dict[str, bytes] = {}
    for name in PICTURES if run is not None else ():
        path = run.path / name  # type: ignore[union-attr]
        if path.is_file():
            files[name] = path.read_bytes()
    text = model_card(info, metadata, run, tuple(files))
    return {CARD: text.encode(errors="replace"), **files}


def model_card(
    info: EncoderInfo,
    metadata: Mapping[str, str],
    run: RunFolder | None,
    pictures: tuple[str, ...] = (),
) -> str:
    """Return the card as Markdown; see `card_files`. `pictures` are names of files beside it."""
    kind = "encoder" if info.classes is None else f"classifier of {len(info.classes)} classes"
    title = info.model_name if run is None else run.path.resolve().name
    trained = (
        f"pretrained for {info.steps} steps without labels by FCMAE"
        if info.mask_ratio is not None
        else f"trained for {info.steps} steps with labels"
    )
    lines = [
        *_front_matter(info),
        f"# {title}",
        "",
        f"{info.model_name} ({kind}), {trained}, with the FCMAE toolkit {__version__}.",
        "",
        *_loading(info),
        *_feeding(info),
    ]
    if run is not None:
        lines += _training(info, metadata, run, pictures)
    return "\n".join([*lines, *_licence(info, run)])


def _front_matter(info: EncoderInfo) -> list[str]:
    """Return what hubs read: nothing is claimed about a licence that nobody stated."""
    licence = ["license: cc-by-nc-4.0"] if _NON_COMMERCIAL in info.origin else []
    task = "image-feature-extraction" if info.classes is None else "image-classification"
    return ["---", "library_name: timm", f"pipeline_tag: {task}", *licence, "---", ""]


def _loading(info: EncoderInfo) -> list[str]:
    channels = info.in_chans
    return [
        "## Load",
        "",
        "DIR is this folder. Without `pretrained=True` timm draws random weights.",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:DIR", pretrained=True)',
        'maps = timm.create_model("local-dir:DIR", pretrained=True, features_only=True)',
        "",
        "import segmentation_models_pytorch as smp",
        "",
        f'net = smp.Unet("tu-local-dir:DIR", encoder_weights=True, in_channels={channels}, '
        "classes=2)",
        "```",
        "",
    ]


def _feeding(info: EncoderInfo) -> list[str]:
    values = dataclasses.asdict(info)
    lines = ["## Images", "", "| what | value |", "|---|---|"]
    for name, words in _FED.items():
        if values[name] is not None:
            lines.append(f"| {words} | {_cell(values[name])} |")
    if info.classes is not None:
        lines += ["", f"Classes, in the order of the outputs: {', '.join(info.classes)}."]
    return [*lines, ""]


def _training(
    info: EncoderInfo, metadata: Mapping[str, str], run: RunFolder, pictures: tuple[str, ...]
) -> list[str]:
    lines = ["## Training", ""]
    images = _num_images(run.images)
    if images:
        held_out = _num_images(run.held_out)
        beside = f", and {held_out} held out" if held_out else ""
        lines += [f"Trained on {images} images{beside}."]
    if info.mask_ratio is not None:
        lines += [f"{info.mask_ratio:.3f} of the patches of {info.patch_size} px were hidden."]
    lines += [*_course(read_metrics(run.metrics)), ""]
    shares = {"val_accuracy": "accuracy", "val_balanced_accuracy": "balanced accuracy"}
    scores = {words: metadata[name] for name, words in shares.items() if name in metadata}
    if scores:
        listed = ", ".join(f"{words} {100 * float(text):.1f} %" for words, text in scores.items())
        lines += [f"On its validation images: {listed}.", ""]
    told = _text(run.path / "scores.txt")
    if told:
        lines += ["Scores that the run printed:", "", "```", told.rstrip(), "```", ""]
    for name in pictures:
        lines += [f"![{Path(name).stem.replace('_', ' ')}]({name})", ""]
    return lines + _settings(run)


def _course(metrics: list[dict[str, Any]]) -> list[str]:
    """Say where the loss, and the held-out loss of pretraining, began and ended."""
    sentences = []
    for name, words in (("loss", "Training loss"), ("health/loss", "Held-out loss")):
        found = [line for line in metrics if isinstance(line.get(name), (int, float))]
        if len(found) > 1:
            first, last = found[0], found[-1]
            sentences.append(
                f"{words}: {first[name]:.4f} at step {first['step']}, {last[name]:.4f} at step "
                f"{last['step']}."
            )
    return sentences


def _settings(run: RunFolder) -> list[str]:
    try:
        plain = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    sections = {
        section: {name: _place(name, value) for name, value in values.items()}
        for section, values in (plain or {}).items()
        if isinstance(values, dict)
    }
    text = yaml.safe_dump(sections, sort_keys=False).rstrip()
    note = "Names of folders and files are their last part alone."
    return ["## Settings", "", note, "", "```yaml", text, "```", ""]


def _licence(info: EncoderInfo, run: RunFolder | None) -> list[str]:
    lines = ["## Licence", ""]
    if info.origin:
        return [*lines, f"Origin of the start weights or images: {info.origin}.", ""]
    where = "the images" if run is not None else "the images and of the start weights, if any,"
    return [*lines, f"Nothing is recorded; the licences of {where} carry over.", ""]


def _place(name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_place(name, item) for item in value]
    is_place = name in _PLACES and isinstance(value, str)
    return os.path.basename(value.rstrip("/")) if is_place else value


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _num_images(path: Path) -> int:
    """Return how many images a run recorded in a file; 0 without one that can be read."""
    try:
        return len(read_paths(path))
    except (CheckpointError, DiskError):
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
