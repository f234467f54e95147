"""From an ablation to its cells: one complete pretraining configuration each, checked."""

import copy
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fcmae.data import Reading
from fcmae.data.augmentation import mean_and_std
from fcmae.data.quick_look import QuickLook
from fcmae.errors import ConfigError, UnsupportedModelError
from fcmae.model.autoencoder import create_model
from fcmae.model.masking import effective_mask_ratio
from fcmae.model.structure import unit_of, with_structure
from fcmae.pretraining.recipe import with_numbers
from fcmae.settings.ablation import Ablation, Plain
from fcmae.settings.auto import AUTO
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import from_plain, to_plain
from fcmae.settings.sections import image_height_width
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.studies.ablation.split import IMAGES_FILE, Split
from fcmae.training.auto import recorded_settings, size_by_pictures
from fcmae.training.schedule import Schedule

SEED = "train.seed"
RATIO = "mask.ratio"
SIZE = "data.image_size"
LONGEST_NAME = 120
# What an untrained encoder's features depend on, beside the seed.
OF_THE_ENCODER = ("model.name", "model.stem_stride")
READING = ("value_range", "bands", "background", "reader")  # of data: read by both alike


@dataclass(frozen=True)
class Cell:
    """One pretraining of the grid, or an untrained encoder as its baseline.

    Attributes:
        name: of its folder.
        settings: {"section.name": value} of what the grid varies, without the seed.
        seed: train.seed.
        config: the pretraining; of a baseline what its encoder would be trained with.
        finetune: the fine-tuning of its encoder, or None.
        is_scratch: True for a baseline, whose encoder is not trained.
    """

    name: str
    settings: dict[str, Any]
    seed: int
    config: PretrainConfig
    finetune: FinetuneConfig | SegmentationConfig | None
    is_scratch: bool = False

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run.dir)

    @property
    def title(self) -> str:
        """What it is, in words: mask.ratio 0.6, train.seed 1."""
        words = ["from scratch"] if self.is_scratch else []
        words += [f"{name} {_short(value)}" for name, value in self.settings.items()]
        return ", ".join([*words, f"{SEED} {self.seed}"])


def build_cells(ablation: Ablation, split: Split, *, check: bool = True) -> list[Cell]:
    """Return the cells, every setting for the first seed, then for the next; baselines last.

    Args:
        ablation: what is asked for.
        split: its images.
        check: build every model without its weights, too, which finds what does not fit.

    Raises:
        ConfigError: a setting that cannot work, with the cell that has it.
    """
    ablation = _sized(ablation, split)
    varied = [name for name in ablation.grid if name != SEED]
    cells: dict[str, Cell] = {}
    for seed in ablation.grid[SEED]:
        for values in itertools.product(*(ablation.grid[name] for name in varied)):
            settings = dict(zip(varied, values, strict=True))
            cell = _cell(ablation, split, settings, seed, check=check)
            _check_new(cell, cells)
            cells[cell.name] = cell
    if ablation.evaluate.scratch:
        for cell in list(cells.values()):
            baseline = _baseline(ablation, split, cell)
            cells.setdefault(baseline.name, baseline)
    return list(cells.values())


def _sized(ablation: Ablation, split: Split) -> Ablation:
    """Return the ablation with a number where an image size is left to the pictures.

    It is one for all cells, and the one that a cell has recorded: they must be alike.
    """
    base = from_plain(PretrainConfig, {**ablation.base, "run": {"dir": "base"}}, where="base")
    sizes = ablation.grid.get(SIZE, [base.data.image_size])
    if AUTO not in sizes:
        return ablation
    cells = sorted(Path(ablation.run.dir, "cells").glob("*"))
    saved = (recorded_settings(str(folder)) for folder in cells)
    size = next((plain["data"]["image_size"] for plain in saved if plain is not None), None)
    if size is None or len(sizes) > 1:
        look = QuickLook(split.train, Reading.of_settings(base.data))
        size, _ = size_by_pictures(look, unit_of(base))
    if SIZE in ablation.grid:
        grid = {**ablation.grid, SIZE: [size if one == AUTO else one for one in sizes]}
        return dataclasses.replace(ablation, grid=grid)
    data = {**ablation.base["data"], "image_size": size}
    return dataclasses.replace(ablation, base={**ablation.base, "data": data})


def effective_ratio_of(config: PretrainConfig) -> float:
    """Return the share of patches that a run hides in fact."""
    config = with_structure(config)
    height, width = image_height_width(config.data.image_size)
    patch = config.mask.patch_size
    return effective_mask_ratio((height // patch) * (width // patch), config.mask.ratio)


def default_settings(cells: list[Cell], ablation: Ablation) -> dict[str, Any]:
    """Return the settings that the others are compared with: the base run's own.

    Where the grid leaves the base's value out, its first value counts.
    """
    base = to_plain(_complete(ablation, {}, cells[0].seed, "base", None))
    settings = {}
    for name in cells[0].settings:
        section, _, leaf = name.partition(".")
        known = [cell.settings[name] for cell in cells if not cell.is_scratch]
        settings[name] = base[section][leaf] if base[section][leaf] in known else known[0]
    return settings


def _cell(
    ablation: Ablation, split: Split, settings: dict[str, Any], seed: Any, *, check: bool
) -> Cell:
    name = _slug({**settings, SEED: seed})
    title = ", ".join(f"{key} {_short(value)}" for key, value in {**settings, SEED: seed}.items())
    try:
        config = _complete(ablation, {**settings, SEED: seed}, seed, f"cells/{name}", split)
        if check:
            _check_model(config, split)
        finetune = _finetune(ablation, config, split, is_scratch=False)
    except (ConfigError, UnsupportedModelError) as error:
        raise ConfigError(f"cell {title}: {error}") from error
    plain = to_plain(config)
    exact = {key: plain[key.partition(".")[0]][key.partition(".")[2]] for key in settings}
    return Cell(name, exact, config.train.seed, config, finetune)


def _baseline(ablation: Ablation, split: Split, cell: Cell) -> Cell:
    settings = {name: cell.settings[name] for name in OF_THE_ENCODER if name in cell.settings}
    name = "scratch_" + _slug({**settings, SEED: cell.seed})
    run = {**to_plain(cell.config), "run": {"dir": str(cell.folder.parent / name)}}
    config = from_plain(PretrainConfig, run, where=name)
    finetune = _finetune(ablation, config, split, is_scratch=True)
    return Cell(name, settings, cell.seed, config, finetune, is_scratch=True)


def _complete(
    ablation: Ablation, settings: Plain, seed: Any, folder: str, split: Split | None
) -> PretrainConfig:
    plain = copy.deepcopy(ablation.base)
    root = Path(ablation.run.dir)
    # The ablation scores every cell itself, on images that no cell was trained on.
    plain.setdefault("evaluate", {}).setdefault("draws", 0)
    for name, value in {SEED: seed, **settings}.items():
        section, dot, leaf = name.partition(".")
        if not dot or section == "run":
            raise ConfigError(f"grid: {name!r} cannot vary; expected a setting such as mask.ratio.")
        if not isinstance(plain.setdefault(section, {}), dict):
            raise ConfigError(f"base: {section}: got {plain[section]!r}, expected settings.")
        plain[section][leaf] = value
    plain["run"] = {"dir": str(root / folder)}
    if split is not None and split.is_cut_from_base:
        plain["data"] = {**plain["data"], "path": str(root / IMAGES_FILE), "label": None}
    return from_plain(PretrainConfig, plain, where="base or grid")


def _check_model(config: PretrainConfig, split: Split) -> None:
    """Raise the errors of the model and of the number of images, without drawing weights."""
    config = with_numbers(config, len(split.train))
    with torch.device("meta"):
        create_model(config)
    batch = config.train.batch_size * config.train.accumulate
    if split.is_cut_from_base and batch > len(split.train):
        raise ConfigError(
            f"train.batch_size: a step takes {batch} images (batch_size x accumulate) and "
            f"{len(split.train)} are left to train on; use a smaller batch_size."
        )
    Schedule(config.train, config.optim, len(split.train), batch)


def _finetune(
    ablation: Ablation, config: PretrainConfig, split: Split, *, is_scratch: bool
) -> FinetuneConfig | SegmentationConfig | None:
    """Return the fine-tuning of a cell's encoder: the same for all of them but for the weights."""
    if not ablation.finetune:
        return None
    plain = copy.deepcopy(ablation.finetune)
    data, model = config.data, with_structure(config, len(split.train)).model
    mean, std = mean_and_std(config.data)
    kind = ablation.finetune_class
    images = {"path": split.source}
    images |= {name: split.made_by[name] for name in ("label", "val_share", "split_seed")}
    if kind is SegmentationConfig:
        del images["label"]
        if has_own_masks(ablation):
            images = {}
            plain["data"] = {"path": split.source, **plain["data"]}
    fixed: Plain = {
        "run": {"dir": str(Path(config.run.dir) / "finetune")},
        "data": {
            "in_chans": data.in_chans,
            **{name: getattr(data, name) for name in READING},
            **images,
        },
        "model": {"name": model.name, "stem_stride": model.stem_stride},
        "train": {"seed": config.train.seed},
    }
    for section, values in fixed.items():
        given = set(plain.get(section, {})) & set(values)
        if given:
            raise ConfigError(
                f"finetune.{section}.{min(given)}: it follows from the cell; remove it."
            )
        plain[section] = {**plain.get(section, {}), **values}
    plain["model"]["weights"] = None if is_scratch else config.run.dir
    if is_scratch and plain["model"].get("head_start") == "probe":
        plain["model"]["head_start"] = "random"  # there is nothing to probe
    size = data.image_size
    defaults: Plain = {
        "image_size": list(size) if isinstance(size, tuple) else size,
        "mean": list(mean),
        "std": list(std),
    }
    if plain["data"].get("image_size") == AUTO:
        del plain["data"]["image_size"]
    plain["data"] = {**defaults, **plain["data"]}
    complete = from_plain(kind, plain, where="finetune")
    if not is_scratch:
        return complete
    compare, optim = complete.compare, to_plain(complete)["optim"]
    optim["layer_decay"] = compare.scratch_layer_decay
    if compare.scratch_base_lr not in (None, AUTO):  # rules choose the rate of each run by itself
        optim["base_lr"] = compare.scratch_base_lr
    return from_plain(kind, {**to_plain(complete), "optim": optim}, where="finetune")


def has_own_masks(ablation: Ablation) -> bool:
    """Whether the fine-tuning names images with masks of its own, which the split is not about."""
    data = ablation.finetune.get("data")
    is_about_masks = ablation.finetune_class is SegmentationConfig
    return is_about_masks and isinstance(data, dict) and bool({"path", "val_path"} & set(data))


def _slug(settings: dict[str, Any]) -> str:
    """Return a folder name: mask-ratio-0.6_train-seed-1."""
    parts = [f"{name}-{_short(value)}" for name, value in settings.items()]
    text = "_".join(re.sub(r"[^\w.]+|(?<=[a-z])\.(?=[a-z])", "-", part) for part in parts)
    if len(text) <= LONGEST_NAME:
        return text
    return text[: LONGEST_NAME - 9] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]


def _check_new(cell: Cell, cells: dict[str, Cell]) -> None:
    """Raise ConfigError when a cell shares a folder, or is the same experiment, with another."""
    if cell.name in cells:
        raise ConfigError(
            f"grid: {cell.title} and {cells[cell.name].title} would share the folder {cell.name}; "
            "write their values so that they differ in letters or digits."
        )
    if RATIO not in cell.settings:
        return
    same = {**cell.settings, RATIO: effective_ratio_of(cell.config)}
    for other in cells.values():
        if (
            other.seed == cell.seed
            and {
                **other.settings,
                RATIO: effective_ratio_of(other.config),
            }
            == same
        ):
            raise ConfigError(
                f"grid: {RATIO} {_short(other.settings[RATIO])} and {_short(cell.settings[RATIO])} "
                f"hide the same share of the patches, {same[RATIO]:.3f}; leave one of them out, or "
                "use larger images."
            )


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def trained(cells: list[Cell]) -> Iterator[Cell]:
    """Yield the cells that are pretrained."""
    return (cell for cell in cells if not cell.is_scratch)
