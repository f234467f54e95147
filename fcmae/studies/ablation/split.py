"""The images of an ablation, cut once: what cells train on and what every cell is scored on."""

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcmae.data import ImageList, Reading, open_images
from fcmae.data.holes import without_masks
from fcmae.data.recorded import read_record
from fcmae.data.splits import check_groups, open_with_held_out
from fcmae.errors import ConfigError
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.ablation import Ablation
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import DataConfig, PretrainConfig
from fcmae.settings.reading import from_plain

IMAGES_FILE = "images.txt"  # what the cells train on, where it is cut from the base run's images
SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class Split:
    """Images for training (of cells and of classifiers), and held-out ones for scores.

    Attributes:
        train: the cells' images where they are cut from the base run's, else labelled ones.
        test: held out, the same for every cell.
        source: where they come from, as data.path has it.
        is_cut_from_base: whether the cells train on `train`.
        made_by: the settings that decided the cut.
    """

    train: ImageList
    test: ImageList
    source: Any
    is_cut_from_base: bool
    made_by: dict[str, Any]


def open_split(ablation: Ablation) -> Split:
    """Return the split of a new ablation, or the one that its folder records.

    Raises:
        ConfigError: no images; no labels where methods need them; too few images of a class; the
            folder's ablation has another split.
    """
    evaluate = ablation.evaluate
    # A complete configuration of the base run, for its data section's defaults and its errors.
    placeholder = {"run": {"dir": "base"}, **ablation.base}
    base = from_plain(PretrainConfig, placeholder, where="base")
    is_cut = evaluate.path is None
    varied = sorted({"data.path", "data.label"} & set(ablation.grid))
    if is_cut and varied:
        raise ConfigError(
            f"grid: {varied[0]} varies, so that images held out of one cell would be trained on in "
            "another; name images for the evaluation, --evaluate.path FOLDER."
        )
    source = base.data.path if evaluate.path is None else evaluate.path
    label = base.data.label if is_cut else evaluate.label
    made_by = {
        "path": source,
        "label": label,
        "val_share": evaluate.val_share,
        "split_seed": evaluate.split_seed,
        "is_cut_from_base": is_cut,
    }
    recorded = Path(ablation.run.dir) / SPLIT_FILE
    if recorded.exists():
        split = read_split(recorded)
        changed = [name for name in made_by if split.made_by.get(name) != made_by[name]]
        if changed:
            there, now = split.made_by.get(changed[0]), made_by[changed[0]]
            raise ConfigError(
                f"run.dir: {recorded.parent} holds an ablation with another split of the images "
                f"({changed[0]} {there} there, {now} now); choose another run.dir."
            )
    else:
        reading = Reading.of_settings(base.data)
        where = "data.path" if is_cut else "evaluate.path"
        cut = None if is_cut or "data.path" in ablation.grid else _whole(source, label, base.data)
        if cut is None:
            exclude = base.data.exclude if is_cut else None
            share, seed, group = evaluate.val_share, evaluate.split_seed, base.data.group
            cut = open_with_held_out(
                source, label, share, seed, where, group, exclude, reading.wanted()
            )
        train, test = (_with_absolute_paths(without_masks(images, reading)) for images in cut)
        split = Split(train, test, source, is_cut, made_by)
    learns_labels = bool(ablation.finetune) and ablation.finetune_class is FinetuneConfig
    needs = [*evaluate.methods, *(["fine-tuning"] if learns_labels else [])]
    if needs and split.test.labels is None:
        raise ConfigError(
            f"evaluate.methods: {' and '.join(needs)} need labels, and {source!r} has none; name "
            "a folder with one folder per class as --evaluate.path, or score without labels: "
            f"--evaluate.methods []{' and no finetune settings' if learns_labels else ''}."
        )
    return split


def _whole(source: Any, label: str | None, base: DataConfig) -> tuple[ImageList, ImageList] | None:
    """Return the labelled images of the base run, and all of evaluate.path to score on.

    None where the base run's images have other labels or none, or are among those of
    evaluate.path, or evaluate.path is cut in parts: then it gives both sides.
    """
    wanted = Reading.of_settings(base).wanted()
    test = open_images(source, label, "evaluate.path", wanted=wanted)
    if test.labels is None or test.parts:
        return None
    train = open_images(base.path, base.label, exclude=base.exclude, wanted=wanted)
    if "train" in train.parts:
        train = train.part("train")
    if train.labels is None or train.classes != test.classes:
        return None
    known = set(map(os.path.abspath, train.paths))
    if any(os.path.abspath(path) in known for path in test.paths):
        return None
    if base.group is not None:
        check_groups(train, test, base.group)
    return train, test


def _with_absolute_paths(images: ImageList) -> ImageList:
    paths = tuple(map(os.path.abspath, images.paths))
    return dataclasses.replace(images, paths=paths, root=None, roots=())


def count_trained_on(images: ImageList, folders: Iterable[Path]) -> int:
    """Return how many of the images the runs in some folders were trained on."""
    trained: set[str] = set()
    for folder in folders:
        file = RunFolder(folder).images
        if file.is_file():
            record = read_record(file)
            trained.update(map(os.path.abspath, record.paths_below(record.roots)))
    return sum(os.path.abspath(path) in trained for path in images.paths)


def write_split(split: Split, folder: Path) -> None:
    """Record the split, and the list of images that cells train on."""
    if split.is_cut_from_base:
        text = "".join(f"{path}\n" for path in split.train.paths)
        write_text(folder / IMAGES_FILE, text)
    lists = {
        name: {
            "paths": list(images.paths),
            "labels": None if images.labels is None else list(images.labels),
            "classes": images.classes,
        }
        for name, images in (("train", split.train), ("test", split.test))
    }
    text = json.dumps({"made_by": split.made_by, "source": split.source, **lists}, indent=0)
    write_text(folder / SPLIT_FILE, text + "\n")


def read_split(path: Path) -> Split:
    """Return what `write_split` recorded.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="ascii"))
        train, test = (
            ImageList(
                tuple(stored[name]["paths"]),
                None if stored[name]["labels"] is None else tuple(stored[name]["labels"]),
                None if stored[name]["classes"] is None else tuple(stored[name]["classes"]),
            )
            for name in ("train", "test")
        )
        made_by = stored["made_by"]
        return Split(train, test, stored["source"], made_by["is_cut_from_base"], made_by)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"run.dir: {path} is damaged; restore it, or remove its folder."
        ) from error
