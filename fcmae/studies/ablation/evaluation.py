"""Evaluates the encoder of a cell, each in the same way: scores, held-out pictures, cost.

The result is evaluation.json in the cell's folder; a cell that has it is done.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fcmae.data import sample_seed
from fcmae.data.holes import stack_valid
from fcmae.errors import ConfigError
from fcmae.evaluation import (
    METHODS,
    Features,
    balanced_accuracy,
    draw_labels,
    evaluation_loader,
    extract_features,
)
from fcmae.evaluation.pictures import reconstruct
from fcmae.finetuning.task import finetune, not_scored
from fcmae.machine.cost import effective_batch, flops_per_image
from fcmae.machine.hardware import hardware, versions
from fcmae.model.autoencoder import FCMAE, create_anywhere
from fcmae.model.masking import draw_visible
from fcmae.model.structure import with_structure
from fcmae.runs.durable import write_atomically, write_text
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import load_run
from fcmae.runs.metrics import read_metrics
from fcmae.settings.ablation import Ablation, AblationEvaluateConfig
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import to_plain
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.ablation.grid import Cell
from fcmae.studies.ablation.masks import SEGMENTED, segment_cell
from fcmae.studies.ablation.split import Split
from fcmae.training.processes import Processes, choose_device
from fcmae.weights.encoder_info import EncoderInfo

RESULT_FILE = "evaluation.json"
PICTURES_FILE = "held_out.npz"
FINETUNED = "fine-tuned"
# Settings of the evaluation that change no score: a result stays good when they change.
SCORELESS = ("workers", "scratch", "pictures")


class Encoder(NamedTuple):
    """The encoder of a cell as it stands after its pretraining, or untrained."""

    config: PretrainConfig
    model: FCMAE
    info: EncoderInfo


def read_result(cell: Cell, ablation: Ablation) -> dict[str, Any] | None:
    """Return the cell's result; None when there is none, or one of other evaluation settings."""
    try:
        result = json.loads((cell.folder / RESULT_FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    is_current = isinstance(result, dict) and result.get("made_by") == _made_by(cell, ablation)
    return result if is_current else None


def evaluate_cell(cell: Cell, ablation: Ablation, split: Split) -> str | None:
    """Score the cell's encoder and write evaluation.json and held_out.npz into its folder.

    Returns:
        The name of the signal that stopped its fine-tuning; None when it is done.

    Raises:
        The errors of reading images, of checkpoints, and of the fine-tuning.
    """
    evaluate = ablation.evaluate
    device = choose_device(cell.config.train.device)
    encoder = _load_encoder(cell, device, split)
    scores: dict[str, list[float]] = {}
    if evaluate.methods:
        described = {
            name: extract_features(
                encoder.model.encoder,
                evaluation_loader(images, encoder.info, workers=evaluate.workers),
                device,
            )
            for name, images in (("train", split.train), ("test", split.test))
        }
        scores = score(described["train"], described["test"], evaluate)
    masks: dict[str, Any] = {}
    if isinstance(cell.finetune, SegmentationConfig):
        signal, iou, masks = segment_cell(cell, ablation, split, Processes(0, 1, device))
        scores[SEGMENTED] = [iou]
    elif cell.finetune is not None:
        signal, accuracy = _finetune(cell.finetune, cell.seed, split, device)
        scores[FINETUNED] = [accuracy]
    else:
        signal = None
    if signal is not None:
        return signal
    if not cell.is_scratch:
        _draw_pictures(cell, encoder, split, device, evaluate)
    config = encoder.config
    step = encoder.info.steps
    lines = read_metrics(RunFolder(cell.folder).metrics)
    images = step * effective_batch(lines, config.train)
    result = {
        "made_by": _made_by(cell, ablation),
        "scores": scores,
        "steps": step,
        "images": images,
        "effective_mask_ratio": encoder.model.effective_mask_ratio,
        "flops": images * flops_per_image(config),
        "classes": split.test.classes,
        "train_images": len(split.train),
        "test_images": len(split.test),
        "masks": masks,
        "threads": torch.get_num_threads(),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_text(cell.folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    return None


def score(train: Features, test: Features, evaluate: AblationEvaluateConfig) -> dict[str, Any]:
    """Return {method: balanced accuracy in per cent of each draw of training labels}.

    The draws are the same for all feature sets of the same images.
    """
    labels = train.labels
    everyone = torch.arange(len(labels))
    if evaluate.labels is None:
        draws = [everyone]
    else:
        draws = []
        for draw in range(evaluate.draws):
            rng = torch.Generator().manual_seed(sample_seed(evaluate.split_seed, "labels", draw))
            draws.append(draw_labels(labels, evaluate.labels, rng)[0])
    return {
        method: [
            100
            * balanced_accuracy(
                METHODS[method](train.vectors[drawn], labels[drawn], test.vectors), test.labels
            )
            for drawn in draws
        ]
        for method in evaluate.methods
    }


def check_labels(evaluate: AblationEvaluateConfig, split: Split) -> None:
    """Raise ConfigError unless so many labels can be drawn from the training images."""
    if evaluate.labels is None or split.train.classes is None or not evaluate.methods:
        return
    num_classes, num_images = len(split.train.classes), len(split.train)
    highest = num_images - num_classes
    if not num_classes <= evaluate.labels <= highest:
        raise ConfigError(
            f"evaluate.labels: got {evaluate.labels}, expected {num_classes} (one for each class) "
            f"to {highest} of the {num_images} training images, or null for all of them."
        )


def _made_by(cell: Cell, ablation: Ablation) -> dict[str, Any]:
    """Return everything that the scores of a cell depend on beside its pretraining."""
    plain = {
        name: value
        for name, value in dataclasses.asdict(ablation.evaluate).items()
        if name not in SCORELESS
    }
    finetune = None if cell.finetune is None else to_plain(cell.finetune)
    if finetune is not None:
        del finetune["run"], finetune["model"]["weights"]  # where it lies may change
    steps = None if cell.is_scratch else [cell.config.train.steps, cell.config.train.epochs]
    as_stored = json.dumps({"evaluate": plain, "finetune": finetune, "steps": steps})
    return dict(json.loads(as_stored))


def _load_encoder(cell: Cell, device: torch.device, split: Split) -> Encoder:
    if cell.is_scratch:
        cell.folder.mkdir(parents=True, exist_ok=True)
        config = with_structure(cell.config, len(split.train))
        model, step = create_anywhere(config).eval(), 0
    else:
        config, model, step = load_run(cell.folder)
    return Encoder(config, model.to(device), EncoderInfo.of_run(config, model, step))


def _finetune(
    config: FinetuneConfig, seed: int, split: Split, device: torch.device
) -> tuple[str | None, float]:
    """Fine-tune on the split's own lists of images; return the signal and the accuracy."""
    from fcmae.data.splits import draw_per_class

    per_class, train = config.data.train_per_class, split.train
    if per_class is not None:
        train = draw_per_class(train, per_class, seed)
    alone = Processes(0, 1, device)
    done = finetune(config, alone, (train, split.test), scores_frozen=False)
    if done.signal is not None:
        return done.signal, float("nan")
    if done.last is None:
        raise not_scored(config.run.dir)
    return None, 100 * done.last.balanced_accuracy


def _draw_pictures(
    cell: Cell,
    encoder: Encoder,
    split: Split,
    device: torch.device,
    evaluate: AblationEvaluateConfig,
) -> None:
    """Keep the reconstructions of the same held-out images, with nested masks, for the report."""
    rng = torch.Generator().manual_seed(sample_seed(evaluate.split_seed, "pictures"))
    chosen = torch.randperm(len(split.test), generator=rng)[: evaluate.pictures].tolist()
    if not chosen:
        return
    images = split.test.select(chosen)
    batches = list(evaluation_loader(images, encoder.info))
    pictures = torch.cat([batch["image"] for batch in batches if batch["path"]])
    names = [Path(path).name for batch in batches for path in batch["path"]]
    holes = [batch.get("valid", [None] * len(batch["path"])) for batch in batches]
    valid = stack_valid([mask for masks in holes for mask in masks])
    info, model = encoder.info, encoder.model
    visible: list[Tensor] = []
    for name in names:  # one order of patches per image: a higher ratio hides more of the same
        rng = torch.Generator().manual_seed(sample_seed(evaluate.split_seed, "mask", name))
        visible.append(draw_visible(1, model.num_patches, model.mask_ratio, rng))
    original, seen, _, pasted = reconstruct(
        model, pictures.to(device), torch.cat(visible), info.mean, info.std, valid
    )
    arrays = {
        name: (255 * array).round().astype(np.uint8)
        for name, array in (("original", original), ("seen", seen), ("pasted", pasted))
    }
    path = RunFolder(cell.folder).path / PICTURES_FILE

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, names=np.array(names), **arrays)

    write_atomically(path, write)
