"""What a run trains: the few things in which jobs differ, asked for by the loop that they share."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fcmae.data import ImageList, PretrainDataset
from fcmae.training.optimization import StepResult, parameter_groups

if TYPE_CHECKING:
    from fcmae.training.loop import TrainingLoop

# ruff: noqa: B027  (a task leaves out the methods in which it has nothing to do)


class Task(abc.ABC):
    """A model, its images and its loss; a data set and a loss are all that a task must define.

    The loop calls the methods in the order in which they stand here, in every process, and hands
    itself to those that need more of the run than the task has: `run` names its folder and log,
    says sentences, tries writes, and knows the step. Creating a task starts nothing.

    Attributes:
        config: settings with the sections run, data, optim, train, log and checkpoint.
        images: what is trained on; from `prepare` on those with which the run began.
        model: with its starting weights, on the CPU; from `prepare` on the run's device.
        rules: sentences about settings that rules have chosen, said before anything begins.
    """

    rules: Sequence[str] = ()

    def __init__(self, config: Any, images: ImageList, model: nn.Module) -> None:
        self.config = config
        self.images = images
        self.model = model

    @property
    def reads_late(self) -> bool:
        """Whether `after_step` can do with the result of an earlier step than the one taken.

        Where it can, a GPU need not wait for the host to know how a step went.
        """
        return False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups; their order must never change, checkpoints rely on it."""
        return parameter_groups(self.model.named_parameters(), self.config.optim.weight_decay)

    def prepare(self, run: TrainingLoop) -> None:
        """Create what else has a state, or belongs to the device, before a checkpoint is loaded."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""

    def begin(self, run: TrainingLoop) -> None:
        """Do what comes before the first of the steps that are left."""

    @abc.abstractmethod
    def create_dataset(self) -> PretrainDataset:
        """Return the samples of `images` by (epoch, index)."""

    @abc.abstractmethod
    def compute_loss(self, network: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a micro-batch whose tensors are on the device.

        `network` is the model, compiled and distributed as the run needs it. Global generators are
        seeded by the step, so that whatever is drawn here is drawn again by a continued run.
        """

    def after_update(self, run: TrainingLoop, was_taken: bool | Tensor) -> None:
        """Do what must follow each change of the weights before the next; asks nothing else.

        `was_taken` says whether there was one: a step with a loss or gradient that is not finite
        leaves them alone. Where the host does not know yet, it is a tensor of the device.
        """

    def after_step(self, run: TrainingLoop, result: StepResult) -> None:
        """Do what follows a step, which `run.progress.step` counts already.

        `result` is this step's, or with `reads_late` the newest that is known.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold beside weights and optimizer: plain data, tensors."""
        return {}

    def state_to_extend(self) -> dict[str, Any]:
        """Return what `state_dict` does, and of the results what a longer run may have to restore.

        Asked for before the decay: a run that is extended from there finds later files.
        """
        return self.state_dict()

    def finish(self, run: TrainingLoop) -> None:
        """Make the results, after the last step."""
