"""The pretraining of a run folder: FCMAE on crops of images, watched and exported."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from fcmae.data import (
    ImageList,
    Normalisation,
    PixelCache,
    PretrainAugmentation,
    PretrainDataset,
    Reading,
    open_images,
)
from fcmae.data.augmentation import mean_and_std
from fcmae.data.holes import without_masks
from fcmae.data.recorded import fix_images
from fcmae.data.reopening import has_begun, recall_apart, recall_training
from fcmae.data.splits import hold_out, parts_sentence
from fcmae.model.autoencoder import FCMAE, create_model
from fcmae.pretraining.monitoring import Watch
from fcmae.pretraining.recipe import (
    DEFAULT_TIME,
    choose_after_length,
    choose_before_length,
    num_trained_on,
    remarks,
    with_numbers,
)
from fcmae.pretraining.start import Start, load_start
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.auto import with_values
from fcmae.settings.pretrain import PretrainConfig
from fcmae.training.auto import Choices, as_recorded, length_is_open, recorded_settings, time_of
from fcmae.training.first_look import look_first, write_files
from fcmae.training.loop import Around, TrainingLoop, nothing
from fcmae.training.optimization import StepResult, lr_scale, parameter_groups
from fcmae.training.pace import seconds_per_step
from fcmae.training.processes import Processes, is_first_of_node, start_processes
from fcmae.training.schedule import effective_batch_of, steps_of
from fcmae.training.task import Task
from sparse.ops import depthwise_triton
from sparse.ops.compiler import missing_kernels


def pretrain(config: PretrainConfig, around: Around = nothing) -> str | None:
    """Run or continue the pretraining that `config` describes, in its run folder.

    Args:
        config: of the run.
        around: see TrainingLoop; the names of this task are those of Watch.

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
        return _train(config, processes, around)
    finally:  # by now nothing holds the model, which holds the group of processes
        processes.close()


def _train(config: PretrainConfig, processes: Processes, around: Around) -> str | None:
    images = open_data(config)
    config, rules = resolve(config, images, processes)
    task = Pretraining(config, images)
    task.rules = rules
    return TrainingLoop(task, processes, around).run()


def open_data(config: PretrainConfig) -> ImageList:
    """Return the images of a pretraining, those that it holds out included; raises DataError."""
    data, reading = config.data, Reading.of_settings(config.data)
    images = open_images(data.path, data.label, exclude=data.exclude, wanted=reading.wanted())
    return without_masks(images, reading)


def resolve(
    config: PretrainConfig, images: ImageList, processes: Processes
) -> tuple[PretrainConfig, list[str]]:
    """Return the settings with values in place of every `auto` and of a time, and their rules.

    A folder that holds a run has them already. Every process calls it.

    Args:
        config: of the run.
        images: of `open_data`.
        processes: this process and the others.

    Raises:
        As `pretrain`.
    """
    saved = processes.from_main(lambda: recorded_settings(config.run.dir))
    if saved is not None:
        return with_values(config, as_recorded(config, saved)), []
    num_images = num_trained_on(config, images)
    effective_batch = effective_batch_of(config.train, processes.world_size, num_images)
    chosen = processes.from_main(
        lambda: _values_and_lines(choose_before_length(config, images, effective_batch))
    )
    choices = Choices(with_values(config, chosen[0]), chosen[1])
    if length_is_open(config):
        provisional = with_numbers(choices.config, len(images))
        pace = seconds_per_step(Pretraining(provisional, images), processes)
        choices.settle_time(time_of(config, DEFAULT_TIME), pace, effective_batch)
    train = choices.config.train
    steps = train.steps or steps_of(train.epochs or 0.0, num_images, effective_batch)
    choose_after_length(choices, steps)
    return choices.config, choices.lines


def _values_and_lines(choices: Choices) -> tuple[dict[str, Any], list[str]]:
    return choices.values, choices.lines


def check(config: PretrainConfig) -> None:
    """Raise ConfigError or DataError for a model or images that cannot be; nothing is computed.

    Another machine may train: neither its GPUs nor its MinkowskiEngine are asked for.
    """
    config = with_numbers(config, len(open_data(config)))
    native = dataclasses.replace(config.model, backend="native")
    with torch.device("meta"):
        create_model(dataclasses.replace(config, model=native))


def _cut(config: PretrainConfig, found: ImageList) -> tuple[ImageList, ImageList, list[str]]:
    """Return training and held-out images, those of a run that has begun, and what to say."""
    folder, data = RunFolder(config.run.dir), config.data
    if not has_begun(folder):
        training, held_out = hold_out(found, config.health, config.train.seed, data.group)
        return training, held_out, []
    held = recall_apart(folder.held_out, folder, found, "held-out images")
    # Of a set that is cut in parts, a run knows those that it uses.
    known = None if "train" in found.parts else held
    recalled = recall_training(folder, found, known, data.max_skipped_share)
    kept = found.select([]) if held is None else held.images
    told = [recalled.told, "" if held is None else held.told]
    return recalled.images, kept, [sentence for sentence in told if sentence]


class Pretraining(Task):
    """FCMAE on the images that are not held out, from its settings to the exported encoder."""

    config: PretrainConfig
    model: FCMAE

    def __init__(self, config: PretrainConfig, images: ImageList) -> None:
        model = create_model(config)
        # What a checkpoint holds needs no start: weights that are gone by then are not missed.
        is_started = has_begun(RunFolder(config.run.dir))
        self._start = Start([], "") if is_started else load_start(model, config)
        training, self._held_out, self._told = _cut(config, images)
        self._parts = parts_sentence(images, self._held_out)
        super().__init__(config, training, model)
        self._augmentation = PretrainAugmentation(
            model.image_size,
            crop_scale=config.data.crop_scale,
            horizontal_flip=config.data.horizontal_flip,
            vertical_flip=config.data.vertical_flip,
            rotate90=config.data.rotate90,
        )
        self._normalise = Normalisation(*mean_and_std(config.data))
        self._cache: PixelCache | None = None
        self._watch: Watch | None = None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups, one per layer of the encoder where their rates differ."""
        optim = self.config.optim
        if optim.layer_decay == 1:
            return super().parameter_groups()
        stages: Any = self.model.encoder.stages
        depths = tuple(len(stage.blocks) for stage in stages)

        def scale(name: str) -> float:
            part, _, inner = name.partition(".")
            if part != "encoder":
                return 1.0
            return lr_scale(inner, depths=depths, decay=optim.layer_decay, assigner="single")

        return parameter_groups(self.model.named_parameters(), optim.weight_decay, scale)

    def begin(self, run: TrainingLoop) -> None:
        """Fill the cache, say what runs and look at the untrained model."""
        self.open_cache()
        if self._cache is not None:  # one process per node fills it, the others wait
            if is_first_of_node():
                with run.around("cache"):
                    self.fill_cache(self._cache, run)
            run.processes.wait()
            self._cache.load()
        undecodable, num_held_out = run.processes.from_main(lambda: self._start_watching(run))
        for sentence in () if run.is_continued else self._start.told:
            run.say(sentence)
        if run.processes.is_main and self._start.origin:
            run.attempt(
                lambda: write_text(run.folder.origin, self._start.origin + "\n"), run.folder.origin
            )
        if not run.is_continued:  # a checkpoint has them already
            run.skipped.add_unlisted(undecodable, num_held_out - len(undecodable))

    def fill_cache(self, cache: PixelCache, run: TrainingLoop) -> None:
        """Add the images that are missing in the cache."""
        cache.fill(self.config.data.workers, run.say)

    def open_cache(self) -> PixelCache | None:
        """Let the samples come from data.cache, where there is one, as far as it is filled.

        Returns it.

        Raises:
            ConfigError: the folder cannot be used.
        """
        data = self.config.data
        if data.cache is not None:
            self._cache = PixelCache(
                data.cache,
                self.images.paths,
                side=data.cache_side or self._augmentation.least_side(),
                reading=Reading.of_settings(data),
            )
        return self._cache

    @property
    def reads_late(self) -> bool:
        """Pictures and scores ask nothing of a step's result."""
        return True

    def create_dataset(self) -> PretrainDataset:
        """Return the samples of a run: crops, flips and masks by (seed, epoch, index)."""
        return PretrainDataset(
            self.images,
            self._augmentation,
            seed=self.config.train.seed,
            reading=Reading.of_settings(self.config.data),
            num_patches=self.model.num_patches,
            mask_ratio=self.config.mask.ratio,
            patch_size=self.model.patch_size,
            min_valid=self.model.min_valid,
            fullest_crops=self.config.data.fullest_crops,
            cache=self._cache,
        )

    def compute_loss(self, network: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the reconstruction loss of the hidden patches."""
        images = batch["image"]
        normalised = self._normalise.to(images.device)(images)
        valid = batch.get("valid")  # there where an image has holes
        loss: Tensor = network(normalised, batch["visible"], valid=valid).loss
        return loss

    def after_step(self, run: TrainingLoop, result: StepResult) -> None:
        """Picture and score the model at the cadences."""
        if self._watch is not None:
            self._watch.look()

    def finish(self, run: TrainingLoop) -> None:
        """Draw the last pictures, export and score the encoder."""
        if self._watch is not None:
            self._watch.finish()
            run.look("the account of files", lambda: write_files(run, self._held_out))

    def _start_watching(self, run: TrainingLoop) -> tuple[list[tuple[str, str]], int]:
        """Say what runs and look at the start, in the main process.

        Returns the held-out files that cannot be decoded, and how many are held out.
        """
        self._describe(run)
        for sentence in self._told:
            run.say(sentence)
        file = run.folder.held_out
        is_continued = run.progress.step > 0 and file.exists()
        held_out = fix_images(file, self._held_out, is_continued=is_continued, report=run.say)
        self._held_out = held_out
        if self._parts is not None and not is_continued:
            run.say(self._parts)
        if self.images.labels is None and self.images.parts:
            run.say(f"no scores by labels: the set {self.images.why_unlabelled}.")
        mean, std = mean_and_std(self.config.data)
        run.look(
            "the first look at the images",
            lambda: look_first(run, held_out, mean, std, is_normalised=False),
        )
        self._watch = Watch(run, self.model, self.images, held_out)
        if run.progress.step == 0:
            self._watch.begin()
        return self._watch.undecodable, len(held_out)

    def _describe(self, run: TrainingLoop) -> None:
        model, config = self.model, self.config
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        run.say(
            f"{config.model.name} ({parameters / 1e6:.1f} M parameters with decoder), "
            f"{len(self.images)} images, {run.length}."
        )
        hidden = round(model.effective_mask_ratio * model.num_patches)
        run.say(
            f"{hidden} of {model.num_patches} patches hidden: effective mask ratio "
            f"{model.effective_mask_ratio:.3f} for mask.ratio {config.mask.ratio}."
        )
        for sentence in remarks(config, len(self.images), run.effective_batch):
            run.say(sentence)
        if config.model.backend == "native" and run.processes.device.type == "cpu":
            reason = missing_kernels()
            if reason is not None:
                run.say(f"the compiled CPU kernels are not used, which is slower: {reason}.")
        if config.model.backend == "native" and run.processes.device.type == "cuda":
            reason = depthwise_triton.missing_kernels()
            if reason is not None:
                run.say(f"the Triton kernels are not used, which is slower: {reason}.")
        if config.model.backend != "native":
            run.say(f"model.backend {config.model.backend} is slower than native by its nature.")
