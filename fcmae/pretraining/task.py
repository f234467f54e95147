"""The pretraining of a run folder: FCMAE on crops of images, watched and exported."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcmae.data import ImageList, Normalisation, PixelCache, PretrainDataset, open_images
from fcmae.data.augmentation import mean_and_std
from fcmae.data.recorded import fix_images
from fcmae.data.splits import hold_out
from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.pretraining.monitoring import Watch
from fcmae.pretraining.setup import (
    create_dataset,
    create_optimizer,
    open_cache,
)
from fcmae.settings.pretrain import PretrainConfig
from fcmae.training.first_look import look_first, write_files
from fcmae.training.loop import TrainingLoop
from fcmae.training.optimization import StepResult
from fcmae.training.processes import Processes, is_first_of_node, start_processes
from fcmae.training.schedule import Schedule


def pretrain(config: PretrainConfig) -> str | None:
    """Run or continue the pretraining that `config` describes, in its run folder.

    Returns:
        The name of the signal that stopped it, with a checkpoint written; None when it is done.

    Raises:
        ConfigError: a setting that cannot work, before anything starts.
        DataError: too many undecodable files, or readers that die or are stuck.
        CheckpointError: every checkpoint of the run is damaged, or init weights do not fit.
        NonFiniteLossError: the loss is NaN or infinite.
        DiskError: no checkpoint could be written several times in a row.
    """
    processes = start_processes(config.train.device)
    try:
        images = open_images(config.data.path, config.data.label, exclude=config.data.exclude)
        return Pretraining(config, processes, images).run()
    finally:
        processes.close()


class Pretraining(TrainingLoop):
    """One pretraining run, from its settings to the exported encoder."""

    config: PretrainConfig
    model: FCMAE

    def __init__(self, config: PretrainConfig, processes: Processes, images: ImageList) -> None:
        model = create_model(config)
        if config.model.init_from is not None:
            from fcmae.weights.reading import load_encoder

            load_encoder(model.encoder, config.model.init_from)
        training, self._held_out = hold_out(
            images, config.health, config.train.seed, config.data.group
        )
        super().__init__(config, processes, training, model)
        self._cache: PixelCache | None = None
        self._normalise = Normalisation(*mean_and_std(config.data)).to(processes.device)
        self.watch: Watch | None = None

    def total_steps_for(self, num_images: int) -> int:
        config = self.config
        self._schedule = Schedule(config.train, config.optim, num_images, self.effective_batch)
        return self._schedule.total_steps

    def create_optimizer(self) -> torch.optim.Optimizer:
        return create_optimizer(self.config, self.model)

    def prepare(self) -> None:
        pass

    def lr_of_step(self, step: int) -> float:
        return self._schedule(step)

    def create_dataset(self) -> PretrainDataset:
        return create_dataset(self.config, self.model, self.images, self._cache)

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        device = self.processes.device
        images = self._normalise(batch["image"].to(device, non_blocking=True))
        visible = batch["visible"].to(device, non_blocking=True)
        loss: Tensor = self.network(images, visible).loss
        return loss

    def begin(self) -> None:
        self._fill_cache()
        undecodable, num_held_out = self.processes.from_main(self._start_watching)
        if not self._is_continued:  # a checkpoint has them already
            self.skipped.add_unlisted(undecodable, num_held_out - len(undecodable))

    def _fill_cache(self) -> None:
        """Bring data.cache up to date, one process per node, while the others wait."""
        self._cache = open_cache(self.config, self.model, self.images)
        if self._cache is None:
            return
        if is_first_of_node():
            self._cache.fill(self.config.data.workers, self.say)
        self.processes.wait()
        self._cache.load()

    def _start_watching(self) -> tuple[list[tuple[str, str]], int]:
        """Say what runs and look at the start, in the main process.

        Returns the held-out files that cannot be decoded, and how many are held out.
        """
        assert self.log is not None
        self._describe()
        held_out = self._fix_held_out()
        self._watched = held_out
        if self.images.labels is None and self.images.parts:
            self.say(f"no scores by labels: the set {self.images.why_unlabelled}.")
        look_first(self, held_out, *mean_and_std(self.config.data), is_normalised=False)
        self.watch = Watch(
            self.config,
            self.folder,
            self.model,
            self.images,
            held_out,
            self.log,
            self.total_steps,
            self.say,
        )
        if self.progress.step == 0:
            self.watch.begin()
        return self.watch.undecodable, len(held_out)

    def _fix_held_out(self) -> ImageList:
        """Return the images that the run holds out, from the first time it was started."""
        file = self.folder.held_out
        return fix_images(
            file,
            self._held_out,
            is_continued=self.progress.step > 0 and file.exists(),
            report=self.say,
        )

    def after_step(self, result: StepResult) -> None:
        if self.watch is not None:
            self.watch.look(self.progress.step)

    def finish(self) -> None:
        if self.watch is not None:
            self.watch.finish(self.progress.step)
            write_files(self, self._watched)

    def extra_state(self) -> dict[str, Any]:
        return {}

    def restore_extra_state(self, state: dict[str, Any]) -> None:
        del state  # the averages of pretraining are in `progress`

    def _describe(self) -> None:
        """Say what runs, once, before it runs."""
        model, config = self.model, self.config
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.say(
            f"{config.model.name} ({parameters / 1e6:.1f} M parameters with decoder), "
            f"{len(self.images)} images, {self.total_steps} steps of {self.effective_batch}, "
            f"{self.processes.world_size} x {self.processes.device}, {config.train.precision}."
        )
        hidden = round(model.effective_mask_ratio * model.num_patches)
        self.say(
            f"{hidden} of {model.num_patches} patches hidden: effective mask ratio "
            f"{model.effective_mask_ratio:.3f} for mask.ratio {config.mask.ratio}."
        )
        if config.model.backend != "native":
            self.say(f"model.backend {config.model.backend} is slower than native by its nature.")
