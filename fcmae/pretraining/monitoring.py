"""What people see of a pretraining: pictures, loss curve, scores of the frozen encoder, export.

Nothing here changes the training: it draws from no global generator and trains no weight. What
fails here is a sentence: every look goes through TrainingLoop.look.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
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
    Scores,
    choose_scored,
    extract_together,
    score_features,
    sides_of,
    summary,
    thumbnails,
)
from fcmae.evaluation.health import (
    START_LOSS,
    Drift,
    HealthCheck,
    draw_health,
    first_epoch,
    verdict,
)
from fcmae.evaluation.pictures import draw_loss_curve, draw_reconstructions
from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.model.masking import draw_visible, num_visible_patches
from fcmae.pretraining.start import load_start
from fcmae.runs.durable import write_text
from fcmae.runs.metrics import read_metrics
from fcmae.settings.length import longer_command
from fcmae.settings.pretrain import PretrainConfig
from fcmae.training.loop import TrainingLoop
from fcmae.weights.encoder_info import EncoderInfo
from fcmae.weights.export import export
from fcmae.weights.formats import FILE_NAMES, TIMM_FOLDER

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
        pictured = held_out if len(held_out) else images
        look = run.look
        self._pictured = look("choosing pictures", lambda: self._choose_pictures(pictured))
        self._health: HealthCheck | None = None
        self._drift: Drift | None = None
        # Where weights were the start, one more check says what the first epoch did to them.
        epoch = math.ceil(len(images) / run.effective_batch)
        self._end_of_first_epoch = min(epoch, run.total_steps) if self._has_start else None
        look("preparing health checks", lambda: self._prepare_health(held_out))
        self._scored = look("choosing images to score", lambda: self._choose_scored(images))

    def begin(self) -> None:
        """Picture and score the untrained model."""
        self._look(0, pictures=True, scores=True, health=True)

    def look(self) -> None:
        """Picture and score where a cadence says so."""
        step, checks = self._run.progress.step, self._config.health.checks
        pictures, scores = self._config.log.pictures_every_steps, self._config.evaluate.every_steps
        self._look(
            step,
            pictures=pictures is not None and step % pictures == 0,
            scores=scores is not None and step % scores == 0,
            health=step in {round(self._run.total_steps * (n + 1) / checks) for n in range(checks)}
            or (checks > 0 and step == self._end_of_first_epoch),
        )

    def _look(self, step: int, *, pictures: bool, scores: bool, health: bool) -> None:
        look = self._run.look
        if pictures:
            look(f"the pictures of step {step}", lambda: self._draw_pictures(step))
        if scores:
            look(f"the kNN score of step {step}", lambda: self._log_knn(step))
        if health:
            look(f"the health check of step {step}", lambda: self._log_health(step))

    def finish(self) -> None:
        """Draw the last pictures, export the encoder, score it, and write the folder of both."""
        self._log.close()
        step, look = self._run.progress.step, self._run.look
        self._look(step, pictures=True, scores=False, health=False)
        look("the loss curve", self._draw_loss_curve)
        look("the verdict on the held-out loss", self._say_verdict)
        path = self._folder.export / "encoder.safetensors"
        origin = self._folder.read_origin()
        info = EncoderInfo.of_run(self._config, self._model, step, origin)
        self._run.say(export(self._model.encoder, "timm", path, info))
        look("scoring the frozen encoder (fcmae probe does it, too)", self._report_scores)
        folder = self._folder.export / f"encoder{FILE_NAMES[TIMM_FOLDER]}"
        self._run.attempt(
            lambda: export(self._model.encoder, TIMM_FOLDER, folder, info, self._folder), folder
        )

    def _say_verdict(self) -> None:
        if self._health is not None:
            lines = read_metrics(self._folder.metrics)
            longer = longer_command(self._config)
            self._run.say(f"held-out loss: {verdict(lines, self._run.total_steps, longer)}")

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
        if images.labels is None or evaluate.draws == 0:
            if images.labels is not None and evaluate.every_steps is not None:
                self._run.say("evaluate.draws is 0: nothing is scored, whatever every_steps says.")
            return None
        indices, told = choose_scored(
            images.labels,
            wanted=evaluate.labels,
            seed=self._config.train.seed,
            max_images=evaluate.max_images,
        )
        if told:
            self._run.say(f"scores by labels: {told}")
        return images.select(indices) if len(indices) else None

    def _draw_pictures(self, step: int) -> None:
        if self._pictured is None:
            return
        pictures, visible, names, valid = self._pictured
        mean, std = mean_and_std(self._config.data)
        path = self._folder.reconstructions / f"step-{step:08d}.png"
        with self._run.around("picture"):
            draw_reconstructions(
                self._model,
                pictures,
                visible,
                mean,
                std,
                path,
                names,
                valid,
                finish=lambda draw: self._look_at(step, f"the pictures of step {step}", draw),
            )

    def _draw_loss_curve(self) -> None:
        path = self._folder.loss_curve
        lines = read_metrics(self._folder.metrics)
        normalizes = self._config.loss.normalize_targets
        draw_loss_curve(lines, path, normalize_targets=normalizes)

    @property
    def _has_start(self) -> bool:
        return self._config.model.init_from is not None

    def _prepare_health(self, held_out: ImageList) -> None:
        """Decode the held-out images, noting those that cannot be; without any nothing is done."""
        pictures = []
        for path in held_out.paths:
            try:
                pictures.append(self._read(path))
            except UndecodableImageError as error:
                self.undecodable.append((error.path, error.reason))
        if not pictures:
            return
        images = torch.stack([picture.image for picture in pictures])
        valid = stack_valid([picture.valid for picture in pictures])
        seed, model = self._config.train.seed, self._model
        self._health = HealthCheck(model, images, seed, valid)
        if self._has_start:
            file = self._folder.start_features
            self._drift = Drift(images, seed, valid, model.min_valid, file)
            if self._run.progress.step > 0:
                self._run.look("the features of the start", self._drift.recall)

    def _log_health(self, step: int) -> None:
        """Measure, log and draw the health of the model; the first line has what to beat."""
        if self._health is None:
            return
        with self._run.around("health"):
            values: dict[str, Any] = self._health.measure()
            if self._drift is not None:
                if step == 0:
                    self._drift.remember(self._model.encoder)
                values |= self._drift.measure(self._model.encoder)
            if step == self._end_of_first_epoch:
                values |= self._loss_of_start()
            work = partial(self._write_health, step, values)
            self._look_at(step, f"the health check of step {step}", work)

    def _write_health(self, step: int, values: dict[str, Any]) -> None:
        """Log and draw what was measured, at the start with the losses to beat."""
        assert self._health is not None
        if step == 0 and self._model.normalize_targets:
            values = {**values, **self._health.trivial_losses()}
        self._log.log(step, values)
        path, lines = self._folder.health, read_metrics(self._folder.metrics)
        has_decoder = self._config.model.init_decoder_from is not None
        draw_health(lines, self._run.total_steps, path, has_decoder=has_decoder)
        said = first_epoch(lines, has_decoder=has_decoder)
        if said and step == self._end_of_first_epoch:
            self._run.say(said)

    def _look_at(self, step: int, what: str, work: Callable[[], None]) -> None:
        """Do what needs no model any more: of the start after the first step, which it delays."""
        if step == 0:
            self._run.look_later(what, work)
        else:
            work()

    def _loss_of_start(self) -> dict[str, float]:
        """Return the held-out loss before the first step, as the log has it."""
        first = [line for line in read_metrics(self._folder.metrics) if line.get("step") == 0]
        losses = [line["health/loss"] for line in first if line.get("health/loss") is not None]
        return {START_LOSS: losses[0]} if losses else {}

    def _log_knn(self, step: int) -> None:
        """Log the frozen encoder's kNN score at a cadence; at step 0 it is the untrained one's."""
        if self._scored is None or self._config.evaluate.every_steps is None:
            return
        with self._run.around("knn"):
            features = self._describe({"encoder": self._model.encoder})
            scores = self._score(features, "encoder", methods=("kNN",))
        score = round(scores.mean("kNN", "encoder"), 3)
        self._log.log(step, {"knn_balanced_accuracy": score})
        self._run.say(f"step {step}: kNN of the frozen encoder {score:.1f} % balanced accuracy.")

    def _report_scores(self) -> None:
        """Print scores of the frozen encoder beside the untrained encoder's and raw pixels'."""
        if self._scored is None:
            return
        device = next(self._model.parameters()).device
        described: dict[str, Describer] = {"pretrained": self._model.encoder}
        if self._config.model.init_from is not None:
            start = create_model(self._config)
            what = "loading the run's start, which is not scored,"
            if self._run.look(what, lambda: load_start(start, self._config)) is not None:
                described["its start"] = start.encoder.to(device)
        described["untrained"] = create_model(self._config).encoder.to(device)
        features = self._describe({**described, "raw pixels": thumbnails})
        with self._run.around("scores"):
            scores = self._score(features, "pretrained")
        text = summary(scores, "pretrained", [name for name in features if name != "pretrained"])
        self._run.say("frozen features, scored with labels that pretraining did not see:\n" + text)
        path = self._folder.path / "scores.txt"
        write_text(path, text + "\n")

    def _score(self, features: Mapping[str, Features], name: str, **how: Any) -> Scores:
        """Return scores by labels; of each draw what belongs together with `name` is on one side.

        `how` goes to `score_features`.
        """
        assert self._scored is not None
        evaluate = self._config.evaluate
        images = dataclasses.replace(self._scored, parts={}, part_of=None)
        images, sides = sides_of(images, self._config.data.group, is_asked=False)
        return score_features(
            features,
            labels=evaluate.labels,
            draws=evaluate.draws,
            seed=self._config.train.seed,
            sides=None if sides is None else sides.of_paths(images.paths, features[name].paths),
            **how,
        )

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
