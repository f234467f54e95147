"""What every task with labels does beside its loss: averages weights, scores them, keeps the best.

The best weights go to disk as soon as they are known, the last ones at the end; a disk that is
full then gets them later.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fcmae.data import ImageList
from fcmae.data.augmentation import mean_and_std
from fcmae.data.files import Problem
from fcmae.data.recorded import fix_images
from fcmae.evaluation.classification import ClassificationScores
from fcmae.evaluation.segmentation import SegmentationScores
from fcmae.finetuning.setup import weights_metadata
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.training.first_look import look_first, write_files
from fcmae.training.loop import TrainingLoop
from fcmae.training.optimization import StepResult
from fcmae.training.processes import Processes
from fcmae.training.remarks import warmup_remarks
from fcmae.training.task import Task
from fcmae.weights.files import read_metadata
from sparse.whole import native_blocks

Scores = TypeVar("Scores", bound=ClassificationScores | SegmentationScores)


@dataclass(frozen=True)
class Finetuned(Generic[Scores]):
    """How a fine-tuning ended.

    Attributes:
        signal: what stopped it, with a checkpoint written; None when it is done.
        last: scores after the last step; None when it was stopped before, or they failed.
        total_steps: of the whole run.
        classes: names of the classes.
    """

    signal: str | None
    last: Scores | None
    total_steps: int
    classes: tuple[str, ...]


def float32_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's weights on the CPU, as they are exported."""
    return {
        name: value.detach().to("cpu", copy=True).contiguous()
        if not value.is_floating_point()
        else value.detach().to("cpu", copy=True).float().contiguous()
        for name, value in model.state_dict().items()
    }


class ScoredTask(Task, Generic[Scores]):
    """A task whose weights are scored on validation images; see Task for the calls of the loop.

    Attributes:
        class_names: in the order of the model's outputs.
        told: what is said of weights and images before the first step.
        best_file, last_file: names of the exported weights.
        scores_class: of its scores, whose fields are what a checkpoint holds of them.
        score_name: of the number by which weights are the best, in their metadata.
        ema: the moving average of the weights; None without one.
        best: scores of the exported weights; of two equal ones the earlier.
        best_step: after which these were.
        last: scores after the last step.
        validation: what scores.
    """

    best_file: str
    last_file: str
    scores_class: type[Scores]
    score_name: str

    def __init__(
        self,
        config: Any,
        train: ImageList,
        validation: ImageList,
        model: nn.Module,
        class_names: tuple[str, ...],
        told: Sequence[str],
    ) -> None:
        super().__init__(config, train, model)
        self.class_names = class_names
        self.told = list(told)
        self.validation = validation
        self.ema: ModelEmaV3 | None = None
        self.best: Scores | None = None
        self.best_step = 0
        self.last: Scores | None = None
        self._unwritten_best: dict[str, Tensor] | None = None  # in the main process
        self._score_to_beat = -math.inf  # of a file that the run made when it was shorter
        self._folder = RunFolder(config.run.dir)

    def outputs(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return a network's outputs in float32, its blocks computed as model.native says."""
        is_native = self.config.model.native
        with native_blocks(network) if is_native else contextlib.nullcontext():
            outputs: Tensor = network(images).float()
        return outputs

    @abc.abstractmethod
    def evaluate(self, run: TrainingLoop) -> tuple[Scores, list[Problem]]:
        """Return the scores of `evaluated`, the same in every process, and unusable files."""

    @abc.abstractmethod
    def score_of(self, scores: Scores) -> float:
        """Return the number by which weights are the best."""

    @abc.abstractmethod
    def log_values(self, scores: Scores) -> dict[str, float | None]:
        """Return what metrics.jsonl has of scores."""

    @abc.abstractmethod
    def sentence(self, scores: Scores) -> str:
        """Say scores in a few words."""

    @abc.abstractmethod
    def export(
        self, run: TrainingLoop, name: str, weights: dict[str, Tensor], step: int, scores: Any
    ) -> None:
        """Write weights of `float32_weights` with their scores, or None; raises OSError."""

    @abc.abstractmethod
    def draw(self, scores: Scores, path: Path) -> Path:
        """Draw what is taken for what, and return `path`."""

    def in_short(self, scores: Scores) -> str:
        """Say scores in fewer words, beside others."""
        return self.sentence(scores)

    def beside_best(self, run: TrainingLoop, best: Scores) -> list[str]:
        """Return what stands below the table of the best scores, with which the run ends."""
        return []

    def write_more(self, run: TrainingLoop) -> Path | None:
        """Write the best weights in another way, and return where; None where nothing is."""
        return None

    def run(self, processes: Processes, rules: Sequence[str]) -> Finetuned[Scores]:
        """Train and return how it ended; `rules` are sentences about what rules have chosen."""
        self.rules = rules
        loop = TrainingLoop(self, processes)
        signal = loop.run()
        return Finetuned(signal, self.last, loop.total_steps, self.class_names)

    def prepare(self, run: TrainingLoop) -> None:
        """Start the moving average at the first weights."""
        ema = self.config.ema
        if ema.decay is not None:
            self.ema = ModelEmaV3(self.model, decay=ema.decay, use_warmup=ema.warmup)

    def begin(self, run: TrainingLoop) -> None:
        """Record the validation images, and see what the run has exported before."""
        self.validation = run.processes.from_main(lambda: self._fix_validation(run))
        if run.processes.is_main:
            self._score_to_beat = self._score_of_file()

    def introduce(self, run: TrainingLoop, model: str) -> None:
        """Say what runs and what is known of it, and take the first look at the images."""
        config, parameters = self.config, sum(p.numel() for p in self.model.parameters())
        run.say(
            f"{model} ({parameters / 1e6:.1f} M parameters), {len(self.class_names)} classes, "
            f"{len(self.images)} training and {len(self.validation)} validation images, "
            f"{run.length}; weights: {config.model.weights or 'from scratch'}."
        )
        for sentence in (*self.told, *warmup_remarks(run.schedule)):
            run.say(sentence)
        if run.processes.is_main:
            mean, std = mean_and_std(config.data, weights_metadata(config))
            run.look(
                "the first look at the images",
                lambda: look_first(run, self.validation, mean, std, is_normalised=True),
            )

    def _fix_validation(self, run: TrainingLoop) -> ImageList:
        file = run.folder.validation
        is_continued = run.progress.step > 0 and file.exists()
        return fix_images(file, self.validation, is_continued=is_continued, report=run.say)

    @property
    def evaluated(self) -> nn.Module:
        """The model that is evaluated and exported: the average when there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def reads_late(self) -> bool:
        """Evaluations ask nothing of a step's result."""
        return True

    def after_update(self, run: TrainingLoop, was_taken: bool | Tensor) -> None:
        """Let the average follow the weights, unless they were left alone."""
        if self.ema is None:
            return
        step = run.progress.step if self.config.ema.warmup else None
        if isinstance(was_taken, Tensor):
            follow_if(was_taken, self.ema, self.model, step)
        elif was_taken:
            self.ema.update(self.model, step)

    def after_step(self, run: TrainingLoop, result: StepResult) -> None:
        """Evaluate at the cadence and after the last step."""
        step, total_steps, evaluate = run.progress.step, run.total_steps, self.config.evaluate
        cadence = run.schedule.steps(evaluate.every_steps, evaluate.every_epochs, total_steps)
        if step == total_steps or step % max(1, cadence) == 0:
            self.score(run)

    def score(self, run: TrainingLoop) -> None:
        """Evaluate, keep what is the best, write and say it; a failure is told."""
        found = run.look(f"the evaluation of step {run.progress.step}", lambda: self.evaluate(run))
        if found is None:
            return
        scores, skipped = found
        if skipped and self.best is None:
            path, reason = skipped[0]
            run.say(f"{len(skipped)} validation images left out; the first is {path!r}: {reason}.")
        step = run.progress.step
        if step == run.total_steps:
            self.last = scores
        if self.best is None or self.score_of(scores) > self.score_of(self.best):
            self.best, self.best_step = scores, step
            if run.processes.is_main:
                self._unwritten_best = float32_weights(self.evaluated)
        self.write_best(run)
        if run.log is not None:
            values = self.log_values(scores)
            values[f"best_{self.score_name}"] = self.score_of(self.best)
            run.log.log(step, values)
        run.say(f"step {step}: {self.sentence(scores)}.")

    def _score_of_file(self) -> float:
        """Return the score of the weights that the run has exported, or -inf.

        A run that was extended has those of its former decay, which are worth more than what the
        longer run has before its own: they stay until that is better or done.
        """
        score = read_metadata(self._folder.export / self.best_file).get(self.score_name)
        return float(score) if isinstance(score, (int, float)) else -math.inf

    @property
    def is_best_written(self) -> bool:
        """Whether the disk has the best weights."""
        return self._unwritten_best is None

    def write_best(self, run: TrainingLoop, *, is_last: bool = False) -> None:
        """Write the best weights unless the disk has them; what fails is tried again."""
        weights = self._unwritten_best
        if weights is None or not run.processes.is_main:
            return
        assert self.best is not None
        if self.score_of(self.best) < self._score_to_beat and not is_last:
            return
        if self.write(run, self.best_file, weights, self.best_step, self.best):
            self._unwritten_best = None

    def write(
        self, run: TrainingLoop, name: str, weights: dict[str, Tensor], step: int, scores: Any
    ) -> bool:
        """Export weights; return whether the disk took them."""
        path = run.folder.export / name
        return run.attempt(lambda: self.export(run, name, weights, step, scores), path)

    def finish(self, run: TrainingLoop) -> None:
        """Export the last weights, draw the confusion matrix, print the best scores.

        Scores that failed are tried once more; without any the weights go out unscored.
        """
        if self.last is None:
            self.score(run)
        if not run.processes.is_main:
            return
        self._write_last(run)
        run.look("the account of files", lambda: write_files(run, self.validation))
        best = self.best
        if best is None:
            return
        path = run.folder.path / "confusion_matrix.png"
        drawn = run.look("the confusion matrix", lambda: self.draw(best, path))
        after = "it failed" if self.last is None else self.in_short(self.last)
        said = (
            f"best of the evaluations, after step {self.best_step}, chosen on these same "
            f"validation images (after the last step: {after}):"
        )
        text = "\n".join([said, best.table(self.class_names), *self.beside_best(run, best)])
        run.say(text)
        scores = run.folder.path / "scores.txt"
        run.attempt(lambda: write_text(scores, text + "\n"), scores)
        more = self.write_more(run)
        exported = run.folder.export / self.best_file if self.is_best_written else None
        written = [str(path) for path in (exported, drawn, more) if path is not None]
        if written:
            run.say(f"{' and '.join(written)} written.")

    def _write_last(self, run: TrainingLoop) -> None:
        """Write the best and the last weights; without scores the last ones as the best, too."""
        self.write_best(run, is_last=True)
        last, step = float32_weights(self.evaluated), run.progress.step
        self.write(run, self.last_file, last, step, self.last)
        if self.best is None and self.write(run, self.best_file, last, step, None):
            run.say(
                f"no evaluation succeeded: {run.folder.export / self.best_file} has the weights "
                f"after step {step}, unscored; fcmae finetune --evaluate.only true scores "
                "them later."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the average, the scores so far, and the best weights that have no file yet."""
        return {
            "unwritten_best": self._unwritten_best,
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "best": _plain(self.best),
            "best_step": self.best_step,
            "last": _plain(self.last),
        }

    def state_to_extend(self) -> dict[str, Any]:
        """Return the state with the best weights so far: the file may hold later ones by then."""
        state = self.state_dict()
        if state["unwritten_best"] is None and self.best is not None:
            file = self._folder.export / self.best_file
            if read_metadata(file).get("steps") == self.best_step:
                with contextlib.suppress(OSError, SafetensorError):
                    state["unwritten_best"] = load_file(file)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.best = None if state["best"] is None else self.scores_class(**state["best"])
        self.best_step = state["best_step"]
        self.last = None if state["last"] is None else self.scores_class(**state["last"])
        self._unwritten_best = state.get("unwritten_best")  # version 0.1.0 had none


def _plain(scores: Any) -> dict[str, Any] | None:
    """Return scores as a checkpoint holds them."""
    if scores is None:
        return None
    return {field.name: getattr(scores, field.name) for field in dataclasses.fields(scores)}


@torch.no_grad()
def follow_if(was_taken: Tensor, ema: ModelEmaV3, model: nn.Module, step: int | None) -> None:
    """Do what ema.update(model, step) does, bit for bit, if the device finds that a step was taken.

    Nobody waits for it. A weight of zero leaves an average as it is.

    Args:
        was_taken: bool without dimensions, on the device.
        ema: changed in place.
        model: what is averaged.
        step: as `update` takes it.
    """
    weight = was_taken.float() * (1.0 - ema.get_decay(step))
    for average, value in zip(
        ema.module.state_dict().values(), model.state_dict().values(), strict=True
    ):
        if average.is_floating_point():
            average.lerp_(value, weight)
        else:
            average.copy_(value)
