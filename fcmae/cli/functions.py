"""The commands as functions, for notebooks and scripts: the same words, results as objects.

`fcmae.pretrain(data="pictures", run_dir="runs/mine", **{"mask.ratio": 0.75})` is
`fcmae pretrain --data.path pictures --run.dir runs/mine --mask.ratio 0.75`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from fcmae.evaluation.features import Features
from fcmae.evaluation.given_images import Images
from fcmae.evaluation.mask_prediction import MaskPredictions, TrainedSegmenter
from fcmae.evaluation.prediction import Predictions, TrainedModel
from fcmae.evaluation.prediction import load as load_model
from fcmae.evaluation.protocol import Scores
from fcmae.runs.folder import RunFolder
from fcmae.runs.loading import is_finetuning_run, is_pretraining_run, load_run_config
from fcmae.runs.metrics import read_metrics
from fcmae.settings.finetune import FinetuneConfig
from fcmae.settings.pretrain import PretrainConfig
from fcmae.settings.reading import parse
from fcmae.settings.segmentation import SegmentationConfig
from fcmae.settings.tasks import load_finetuning_settings, task_settings
from fcmae.settings.words import Paths, command_line, names_of, words_of
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import convert_file

Finetuning: TypeAlias = FinetuneConfig | SegmentationConfig


class Run:
    """What a pretraining or a fine-tuning has left in its folder, as it stands.

    Attributes:
        path: the folder.
        stopped_by: name of the signal that stopped it in this process, such as SIGINT of a
            notebook's stop button; None when it is done. The same call goes on from there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        stopped_by: str | None = None,
        device: str | torch.device = "auto",
    ) -> None:
        self.path = Path(path)
        self.stopped_by = stopped_by
        self._device = device
        self._folder = RunFolder(self.path)

    def __fspath__(self) -> str:
        """Return the folder, so that a run stands wherever one is named."""
        return str(self.path)

    def __repr__(self) -> str:
        state = "finished" if self.is_finished else "not finished"
        return f"<fcmae.Run {str(self.path)!r}, {state}>"

    @property
    def is_finished(self) -> bool:
        """Whether every step is done and everything is exported."""
        return self._folder.finished.exists()

    @property
    def config(self) -> PretrainConfig | Finetuning:
        """The settings, resolved; raises ConfigError where they cannot be read."""
        if is_finetuning_run(self.path):
            found: Finetuning = load_finetuning_settings(self._folder.config)
            return found
        return load_run_config(self.path)

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        """One array per logged name, as long as there are lines; NaN where a line lacks it."""
        return _columns(read_metrics(self._folder.metrics))

    @property
    def health(self) -> dict[str, np.ndarray]:
        """The held-out loss and the measures of features, as `metrics`, at their own steps."""
        lines = read_metrics(self._folder.metrics)
        return _columns([line for line in lines if any("health/" in name for name in line)])

    @property
    def scores(self) -> str:
        """The table of frozen features by labels that the run wrote; "" where it has none."""
        file = self._folder.path / "scores.txt"
        return file.read_text(encoding="utf-8") if file.is_file() else ""

    @functools.cached_property
    def model(self) -> TrainedModel | TrainedSegmenter:
        """The encoder of a pretraining, the best classifier or segmenter of a fine-tuning.

        Raises:
            CheckpointError: no checkpoint yet, or damaged ones.
        """
        return load_model(self.path, self._device)

    @property
    def network(self) -> torch.nn.Module:
        """timm's model of `model`, or smp's of a segmenter, in evaluation mode."""
        return self.model.network

    encoder = network

    @property
    def info(self) -> EncoderInfo:
        """How images become the model's input."""
        return self.model.info

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the outputs; None of an encoder."""
        return self.model.classes

    def predict(self, images: Images, **how: Any) -> Predictions | MaskPredictions:
        """Return the probabilities of images, or the classes of their pixels, in their order.

        Args:
            images: a folder or file, several, or pictures: arrays [H, W] or [H, W, C] (or N of
                them in one) with values as files have them, or pictures of Pillow.
            how: batch_size, workers and is_bar_shown; none changes more than the last digits.

        Returns:
            Predictions with probabilities float32 [N, C] of C classes, or MaskPredictions with
            class numbers uint8 or uint16 [H, W] per picture.

        Raises:
            ConfigError: the run of a pretraining, which has no classes.
            CheckpointError: no checkpoint yet, or damaged ones.
            DataError: no images, or none that can be read.
        """
        return self.model.predict(images, **how)

    def embed(self, images: Images, **how: Any) -> Features:
        """Return one vector per image that can be read: the mean of the last feature map.

        Args:
            images: as of `predict`.
            how: batch_size and workers, which change no number.

        Returns:
            Features with vectors float32 [N, D], paths, labels and what was skipped.

        Raises:
            ConfigError: the run of a segmentation.
            CheckpointError: no checkpoint yet, or damaged ones.
            DataError: no images, or none that can be read.
        """
        return self.model.embed(images, **how)

    def reconstruct(self, images: Paths, output: str | os.PathLike[str], **options: Any) -> Path:
        """Draw images, hidden and reconstructed, into a folder, and return it.

        Args:
            images: a folder or file, or several.
            output: the folder of the pictures.
            options: those of `fcmae reconstruct`, such as limit=8 or `**{"mask.ratio": 0.5}`.

        Raises:
            ConfigError: an unknown option, or a folder that cannot be written.
            DataError: no images.
        """
        from fcmae.cli.reconstruct import run

        options = {"output": output, **options}
        run([str(self.path), *names_of(images), *words_of(options)])
        return Path(output)

    def probe(self, data: str | os.PathLike[str], **options: Any) -> Scores:
        """Print and return what classifiers of the frozen features are worth on labels.

        Beside them stand those of an untrained encoder and of raw pixels.

        Args:
            data: a folder of class folders, or elpv.
            options: those of `fcmae probe`, such as labels=200, draws=5, or a file to save to.

        Returns:
            Balanced accuracies in per cent, one per draw, by method and set of features.

        Raises:
            ConfigError: an unknown option, or numbers that cannot be.
            DataError: no labels, or too few.
        """
        from fcmae.cli.probe import carry_out

        return carry_out([str(self.path), os.fspath(data), *words_of(options)])

    def export(self, output: str | os.PathLike[str], to: str = "timm") -> Path:
        """Write the encoder or classifier for another library, and return the file or folder.

        Args:
            output: file or folder.
            to: a format of `fcmae export --to`.

        Raises:
            ConfigError: no such format, or a place that cannot be written.
            CheckpointError: weights that cannot be read.
        """
        for _ in convert_file(str(self.path), str(output), to=to):
            pass
        return Path(output)


def pretrain(
    data: Paths | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    model: str | None = None,
    config: PretrainConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Run:
    """Pretrain an encoder on images, or go on with a run, as `fcmae pretrain` does.

    Args:
        data: `data.path`.
        run_dir: `run.dir`.
        model: `model.name`.
        config: a YAML file, the name of a recipe, nested settings, or a PretrainConfig.
        settings: any other by its name, `**{"mask.ratio": 0.75}`; these win over `config`.

    Returns:
        The run; `stopped_by` says what stopped it, if anything did, with a checkpoint written.

    Raises:
        ConfigError: a setting that is unknown, missing or cannot work, before anything starts.
        DataError: no images, too many that cannot be read, or readers that die.
        CheckpointError: every checkpoint of the run is damaged, or init weights do not fit.
        NonFiniteLossError: the loss is NaN or infinite.
        DiskError: no checkpoint could be written.
    """
    from fcmae.pretraining.task import pretrain as carry_out

    given = {"data.path": data, "run.dir": run_dir, "model.name": model}
    parsed = _parse(PretrainConfig, config, given, settings, "fcmae.pretrain")
    return Run(parsed.run.dir, carry_out(parsed))


def finetune(
    data: Paths | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    config: Finetuning | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune on labelled images, or go on with a run, as `fcmae finetune` does.

    With task="segmentation" on masks: `**{"data.masks": "masks", "data.classes": {...}}`.

    Args:
        data: `data.path`.
        run_dir: `run.dir`.
        weights: `model.weights`: a run, a file, or a name of public weights.
        config: a YAML file, the name of a recipe, nested settings, or those of another run.
        settings: any other by its name; these win over `config`.

    Returns:
        The run; `stopped_by` says what stopped it, if anything did, with a checkpoint written.

    Raises:
        ConfigError, DataError, CheckpointError, NonFiniteLossError, DiskError: as `pretrain`.
    """
    from fcmae.cli.finetune import carry_out

    given = {"data.path": data, "run.dir": run_dir, "model.weights": weights}
    parsed = _parse(None, config, given, settings, "fcmae.finetune")
    return Run(parsed.run.dir, carry_out(parsed))


def load(
    source: str | os.PathLike[str], device: str | torch.device = "auto"
) -> Run | TrainedModel | TrainedSegmenter:
    """Return a run by its folder, or the model of a file or folder that was exported from one.

    All have `predict`; of a segmenter it gives a class per pixel. Others have `embed`, too.

    Args:
        source: run folder, weights file or folder of timm.
        device: auto takes a GPU where there is one.

    Raises:
        ConfigError: a run whose settings cannot be read, or weights that do not say how images
            become their input.
        CheckpointError: unreadable or incomplete weights.
    """
    path = Path(source)
    if is_pretraining_run(path) or is_finetuning_run(path):
        return Run(path, device=device)
    return load_model(path, device)


def _parse(
    config_class: type[Any] | None,
    config: Any,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
    prog: str,
) -> Any:
    if dataclasses.is_dataclass(config) and not settings and not any(given.values()):
        return config
    words = command_line(config, given, settings, prog)
    if config_class is None:
        config_class, words = task_settings(words)
    return parse(config_class, words, prog=prog)


def _columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: _column([line.get(name) for line in lines]) for name in names}


def _column(values: list[Any]) -> np.ndarray:
    """Return an array of numbers with NaN for None, or of objects where some are no numbers."""
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([np.nan if value is None else value for value in values], dtype=float)
    return np.array(values, dtype=object)
