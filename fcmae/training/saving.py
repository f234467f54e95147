"""What a run writes beside its log: checkpoints and results, and what is said of a full disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcmae.errors import CheckpointError, DiskError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.runs.looking import Looks
from fcmae.settings.sections import CheckpointConfig
from fcmae.training.processes import Processes
from fcmae.training.schedule import Length, Schedule


class RunSaving:
    """The checkpoints of a run, written by the main process, with all processes at one mind.

    Args:
        folder: of the run.
        config: how many checkpoints to keep, and how many failures to bear.
        processes: this process and the others.
        say: called with one sentence for everything that cannot be written.

    Attributes:
        looks: at the run, whose failures it outlives.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: CheckpointConfig,
        processes: Processes,
        say: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._max_failures = config.max_failures
        self._processes = processes
        self._say = say
        self._store = CheckpointStore(
            folder.checkpoints,
            keep_last=config.keep_last,
            keep_every=config.keep_every,
            report=say,
        )
        self._failures_in_a_row = 0
        self._num_failures = 0
        self.looks = Looks(say)

    def attempt(self, write: Callable[[], object], where: Path) -> bool:
        """Write something that training can do without; say what failed and where."""
        try:
            write()
        except OSError as error:
            self._num_failures += 1
            self._say(f"{where}: cannot be written ({error.strerror or error}); training goes on.")
            return False
        return True

    def is_begun(self) -> bool:
        """Whether the folder has a checkpoint, damaged or not; the same in every process."""
        return bool(self._processes.from_main(self._store.steps))

    def load_newest(self, schedule: Schedule) -> tuple[int, dict[str, Any], bool] | None:
        """Return what the run of this schedule goes on from, in every process, or None.

        Returns:
            Step and state of the newest undamaged checkpoint that belongs to the schedule, and
            whether later ones, of a run of another length, were passed over.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged, or belongs to a run
                of another length.
        """
        self._store.decay_start = schedule.decay_start
        found: tuple[int, dict[str, Any], bool] | None = self._processes.from_main(
            lambda: self._load_newest(schedule)
        )
        return found

    def _load_newest(self, schedule: Schedule) -> tuple[int, dict[str, Any], bool] | None:
        of_another_length: list[int] = []

        def fits(step: int, state: dict[str, Any]) -> bool:
            length = Length(*state.get("length", schedule.length))  # version 0.1.0 had none
            if not schedule.length.shares(length, step):
                of_another_length.append(step)
            return step not in of_another_length

        found = self._store.load_newest(fits)
        if found is None and of_another_length:
            total, start = schedule.length
            raise CheckpointError(
                f"{self._folder.checkpoints}: a run of {total} steps lets its rate fall from step "
                f"{start} on, and no checkpoint from before that and from before the decay of the "
                f"run's former length is left (those of steps {of_another_length[::-1]} are "
                "later). Give it its former length, a longer one if it was made shorter, or start "
                "a new run in another run.dir."
            )
        return None if found is None else (*found, bool(of_another_length))

    def go_on_from(
        self, step: int, config: Any, *, has_other_length: bool, is_changed: bool
    ) -> None:
        """Let the folder agree that the run goes on after `step`, all checks being done.

        Args:
            step: of the checkpoint that was loaded.
            config: of the run.
            has_other_length: whether config.yaml says another length, perhaps in other words.
            is_changed: whether later files are of a run of another length.

        Raises:
            DiskError: the folder cannot be written; in every process.
        """
        self._processes.from_main(
            lambda: self._go_on_from(step, config, has_other_length, is_changed)
        )

    def _go_on_from(self, step: int, config: Any, has_other_length: bool, is_changed: bool) -> None:
        try:
            if is_changed:
                self._folder.change_length(config, step)
            elif has_other_length:
                self._folder.record(config)
        except OSError as error:
            raise disk_error(error) from error
        self._store.name_newest(step)
        self.attempt(self._store.keep_undecayed, self._folder.checkpoints)  # a kill came between

    def save(self, step: int, state: Callable[[], dict[str, Any]], *, is_needed: bool) -> None:
        """Write a checkpoint; a failure is told, and too many in a row stop the run.

        The last one, and the one before the run stops, `is_needed`: without it the run must not
        end as if all were well. `state` is called in the main process only.

        Raises:
            DiskError: it is needed or too many failed, or the run folder was removed; in every
                process.
        """
        self._processes.from_main(lambda: self._check_folder(step))
        if self._processes.from_main(
            lambda: self.attempt(lambda: self._store.save(step, state()), self._folder.checkpoints)
        ):
            self._failures_in_a_row = 0
            self._processes.from_main(
                lambda: self.attempt(self._store.keep_undecayed, self._folder.checkpoints)
            )
            return
        self._failures_in_a_row += 1
        if is_needed or self._failures_in_a_row >= self._max_failures:
            failed = f"{self._failures_in_a_row} checkpoints in a row"
            raise DiskError(
                f"{self._folder.checkpoints}: "
                f"{failed if self._failures_in_a_row > 1 else 'a checkpoint'} could "
                f"not be written; stopped at step {step}. Make room or mend permissions and start "
                "the same command again: it goes on from the last good checkpoint."
            )

    def _check_folder(self, step: int) -> None:
        if self._folder.is_lost():
            raise DiskError(
                f"run.dir: {self._folder.path} was removed or replaced while this run was writing "
                f"there; stopped at step {step}. Put the folder back and start the same command "
                "again to go on from its last checkpoint."
            )

    def is_finished(self, step: int, total_steps: int) -> bool:
        """Say so when everything was done by an earlier start of the run."""
        finished = self._folder.finished
        is_finished: bool = self._processes.from_main(
            lambda: finished.exists() and step == total_steps
        )
        if is_finished:
            self._say(
                f"{self._folder.path}: this run is finished, nothing is left to do; remove "
                f"{finished} to have its results made again from the last checkpoint."
            )
        return is_finished

    def finish(self, step: int, make_results: Callable[[], None]) -> None:
        """Make the results of a run in every process, and note in its folder that they are made.

        Raises:
            DiskError: a result could not be written; another start makes them again.
        """
        before, failure = self._num_failures + self.looks.num_refused, None
        try:
            make_results()
        except OSError as error:
            failure = error
        if self._num_failures + self.looks.num_refused > before:
            failure = OSError("see above")
        self._processes.from_main(lambda: self._note_finished(step, failure))

    def _note_finished(self, step: int, failure: OSError | None) -> None:
        self._check_folder(step)
        try:
            if failure is not None:
                raise failure
            write_text(self._folder.finished, f"step {step}\n")
        except OSError as error:
            raise disk_error(error, " All steps are taken and saved.") from error


def disk_error(error: OSError, said: str = "") -> DiskError:
    """Return the error of a run that stops since something essential cannot be written."""
    return DiskError(
        f"{error.filename or 'some results'}: cannot be written ({error.strerror or error}).{said} "
        "Make room or mend permissions and start the same command again."
    )
