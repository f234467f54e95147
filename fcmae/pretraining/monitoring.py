"""What people see of a pretraining: pictures, loss curve, scores of the frozen encoder, export.

Nothing here changes the training: it draws from no global generator and trains no weight.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fcmae.data import (
    Decoded,
    EvaluationDataset,
    EvaluationTransform,
    ImageList,
    Reading,
    UndecodableImageError,
    decode,
    in_order,
    make_loader,
    sample_seed,
)
from fcmae.data.augmentation import mean_and_std
from fcmae.data.holes import stack_valid
from fcmae.evaluation import (
    Describer,
    Features,
    extract_together,
    score_features,
    summary,
    thumbnails,
)
from fcmae.evaluation.health import HealthCheck, draw_health, verdict
from fcmae.evaluation.pictures import draw_loss_curve, draw_reconstructions
from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.model.masking import draw_visible, num_visible_patches
from fcmae.runs.durable import write_text
from fcmae.runs.metrics import read_metrics
from fcmae.settings.length import longer_command
from fcmae.settings.pretrain import PretrainConfig
from fcmae.training.loop import TrainingLoop
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export

BATCH_IMAGES = 32  # of pictures and scores; bounds memory, changes no number


class _Pictured(NamedTuple):
    """What the reconstruction pictures show: images, visible patches, captions, and holes."""

    images: Tensor
    visible: Tensor
    names: list[str]
    valid: Tensor | None


class Watch:
    """Looks at the model of a run at its cadences, in the main process.

    Its pieces of work are named picture, knn, health, features and scores; see TrainingLoop.

    Args:
        run: whose progress decides, with its log open.
        model: that is trained.
        images: what it is trained on.
        held_out: images that it is not trained on.

    Attributes:
        undecodable: (path, reason) of held-out files that the training does not meet.
    """

    def __init__(
        self, run: TrainingLoop, model: FCMAE, images: ImageList, held_out: ImageList
    ) -> None:
        assert run.log is not None  # of the main process
        self.undecodable: list[tuple[str, str]] = []
        self._run, self._log, self._folder = run, run.log, run.folder
        self._config: PretrainConfig = run.config
        self._model = model
        mean, std = mean_and_std(self._config.data)
        self._transform = EvaluationTransform(model.image_size, mean=mean, std=std)
        # Pictures are of held-out images where there are any: the model never saw them.
        self._pictured = self._choose_pictures(held_out if len(held_out) else images)
        self._health = self._prepare_health(held_out)
        self._scored = self._choose_scored(images)

    def begin(self) -> None:
        """Picture and score the untrained model."""
        self._draw_pictures(0)
        self._log_knn(0)
        self._log_health(0)

    def look(self) -> None:
        """Picture and score where a cadence says so."""
        step, checks = self._run.progress.step, self._config.health.checks
        pictures, scores = self._config.log.pictures_every_steps, self._config.evaluate.every_steps
        if pictures is not None and step % pictures == 0:
            self._draw_pictures(step)
        if scores is not None and step % scores == 0:
            self._log_knn(step)
        if step in {round(self._run.total_steps * (n + 1) / checks) for n in range(checks)}:
            self._log_health(step)

    def finish(self) -> None:
        """Draw the last pictures, export the encoder and score it."""
        self._log.close()
        step = self._run.progress.step
        self._draw_pictures(step)
        self._draw_loss_curve()
        if self._health is not None:
            lines = read_metrics(self._folder.metrics)
            longer = longer_command(self._config)
            self._run.say(f"held-out loss: {verdict(lines, self._run.total_steps, longer)}")
        path = self._folder.export / "encoder.safetensors"
        origin = self._folder.read_origin()
        info = EncoderInfo.of_run(self._config, self._model, step, origin)
        self._run.say(export(self._model.encoder, "timm", path, info))
        self._report_scores()

    def _read(self, path: str) -> Decoded:
        """Return an image as the model takes it.

        Raises:
            UndecodableImageError: it cannot be decoded, or too few of its patches have data.
        """
        model = self._model
        reading = Reading.of_settings(self._config.data)
        picture = self._transform.prepare(decode(path, reading, self._transform.choose_part))
        if picture.valid is not None:
            found = int(model.valid_patches(picture.valid[None]).sum())
            needed = num_visible_patches(model.num_patches, model.mask_ratio) + 1
            if found < needed:
                raise UndecodableImageError(
                    path,
                    f"has data in {found} of {model.num_patches} patches, which is less than the "
                    f"{needed} that mask.ratio {model.mask_ratio:g} needs",
                )
        return picture

    def _choose_pictures(self, images: ImageList) -> _Pictured | None:
        """Decode the fixed images and draw their masks; None when no file can be decoded."""
        wanted = self._config.log.num_pictures
        rng = torch.Generator().manual_seed(sample_seed(self._config.train.seed, "pictures"))
        pictures, names = [], []
        for index in torch.randperm(len(images), generator=rng).tolist()[: 4 * wanted]:
            path = images.paths[index]
            try:
                pictures.append(self._read(path))
            except UndecodableImageError:
                continue  # the training says so when it meets the file
            names.append(Path(path).name)
            if len(pictures) == wanted:
                break
        if not pictures:
            return None
        stacked = torch.stack([picture.image for picture in pictures])
        valid = stack_valid([picture.valid for picture in pictures])
        patches = None if valid is None else self._model.valid_patches(valid)
        ratio = self._config.mask.ratio
        visible = draw_visible(len(pictures), self._model.num_patches, ratio, rng, patches)
        return _Pictured(stacked, visible, names, valid)

    def _choose_scored(self, images: ImageList) -> ImageList | None:
        """Return labelled images to score on, or None when there are none or none is wanted."""
        evaluate = self._config.evaluate
        if images.labels is None or (evaluate.draws == 0 and evaluate.every_steps is None):
            return None
        labelled = [index for index, label in enumerate(images.labels) if label >= 0]
        rng = torch.Generator().manual_seed(sample_seed(self._config.train.seed, "scored"))
        chosen = torch.randperm(len(labelled), generator=rng)[: evaluate.max_images].tolist()
        return images.select(sorted(labelled[place] for place in chosen))

    def _draw_pictures(self, step: int) -> None:
        if self._pictured is None:
            return
        pictures, visible, names, valid = self._pictured
        mean, std = mean_and_std(self._config.data)
        path = self._folder.reconstructions / f"step-{step:08d}.png"
        with self._run.around("picture"):
            self._run.attempt(
                lambda: draw_reconstructions(
                    self._model, pictures, visible, mean, std, path, names, valid
                ),
                path,
            )

    def _draw_loss_curve(self) -> None:
        path = self._folder.loss_curve
        lines = read_metrics(self._folder.metrics)
        normalizes = self._config.loss.normalize_targets
        self._run.attempt(lambda: draw_loss_curve(lines, path, normalize_targets=normalizes), path)

    def _prepare_health(self, held_out: ImageList) -> HealthCheck | None:
        """Decode the held-out images, noting those that cannot be; None when there are none."""
        pictures = []
        for path in held_out.paths:
            try:
                pictures.append(self._read(path))
            except UndecodableImageError as error:
                self.undecodable.append((error.path, error.reason))
        if not pictures:
            return None
        images = torch.stack([picture.image for picture in pictures])
        valid = stack_valid([picture.valid for picture in pictures])
        return HealthCheck(self._model, images, self._config.train.seed, valid)

    def _log_health(self, step: int) -> None:
        """Measure, log and draw the health of the model; the first line has what to beat."""
        if self._health is None:
            return
        with self._run.around("health"):
            values: dict[str, Any] = self._health.measure()
            if step == 0 and self._model.normalize_targets:
                values |= self._health.trivial_losses()
            self._log.log(step, values)
            path, lines = self._folder.health, read_metrics(self._folder.metrics)
            self._run.attempt(lambda: draw_health(lines, self._run.total_steps, path), path)

    def _log_knn(self, step: int) -> None:
        """Log the frozen encoder's kNN score at a cadence; at step 0 it is the untrained one's."""
        if self._scored is None or self._config.evaluate.every_steps is None:
            return
        evaluate = self._config.evaluate
        with self._run.around("knn"):
            features = self._describe({"encoder": self._model.encoder})
            scores = score_features(
                features,
                labels=evaluate.labels,
                draws=max(evaluate.draws, 3),
                seed=self._config.train.seed,
                methods=("kNN",),
            )
        score = round(scores.mean("kNN", "encoder"), 3)
        self._log.log(step, {"knn_balanced_accuracy": score})
        self._run.say(f"step {step}: kNN of the frozen encoder {score:.1f} % balanced accuracy.")

    def _report_scores(self) -> None:
        """Print scores of the frozen encoder beside the untrained encoder's and raw pixels'."""
        evaluate = self._config.evaluate
        if self._scored is None or evaluate.draws == 0:
            return
        untrained = create_model(self._config).to(next(self._model.parameters()).device)
        features = self._describe(
            {
                "pretrained": self._model.encoder,
                "untrained": untrained.encoder,
                "raw pixels": thumbnails,
            }
        )
        with self._run.around("scores"):
            scores = score_features(
                features, labels=evaluate.labels, draws=evaluate.draws, seed=self._config.train.seed
            )
        text = summary(scores, "pretrained", ("untrained", "raw pixels"))
        self._run.say("frozen features, scored with labels that pretraining did not see:\n" + text)
        path = self._folder.path / "scores.txt"
        self._run.attempt(lambda: write_text(path, text + "\n"), path)

    def _describe(self, describers: Mapping[str, Describer]) -> dict[str, Features]:
        assert self._scored is not None
        data = self._config.data
        reading = Reading.of_settings(data)
        dataset = EvaluationDataset(self._scored, self._transform, reading=reading)
        loader = make_loader(
            dataset,
            in_order(len(dataset), BATCH_IMAGES),
            data.workers,
            timeout_seconds=data.timeout_seconds,
        )
        device = next(self._model.parameters()).device
        with self._run.around("features"):
            return extract_together(describers, loader, device)
