"""What a run writes beside its log: checkpoints and results, and what is said of a full disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fcmae.errors import DiskError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder
from fcmae.settings.sections import CheckpointConfig
from fcmae.training.processes import Processes


class RunSaving:
    """The checkpoints of a run, written by the main process, with all processes at one mind.

    Args:
        folder: of the run.
        config: how many checkpoints to keep, and how many failures to bear.
        processes: this process and the others.
        say: called with one sentence for everything that cannot be written.
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

    def attempt(self, write: Callable[[], object], where: Path) -> bool:
        """Write something that training can do without; say what failed and where."""
        try:
            write()
        except OSError as error:
            self._num_failures += 1
            self._say(f"{where}: cannot be written ({error.strerror or error}); training goes on.")
            return False
        return True

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Return step and state of the newest undamaged checkpoint in every process, or None.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        found: tuple[int, dict[str, Any]] | None = self._processes.from_main(self._load_newest)
        return found

    def _load_newest(self) -> tuple[int, dict[str, Any]] | None:
        found = self._store.load_newest()
        if found is not None:
            self._store.name_newest(found[0])
        return found

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
            return
        self._failures_in_a_row += 1
        if is_needed or self._failures_in_a_row >= self._max_failures:
            raise DiskError(
                f"{self._folder.checkpoints}: {self._failures_in_a_row} checkpoints in a row could "
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
        before, failure = self._num_failures, None
        try:
            make_results()
        except OSError as error:
            failure = error
        if self._num_failures > before:
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
