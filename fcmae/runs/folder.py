"""The folder of one run: its files' names, its settings, and the one process that may write."""

import os
import shlex
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import yaml

from fcmae.errors import ConfigError
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.durable import PARTIAL, write_text
from fcmae.runs.locks import take_lock
from fcmae.settings.files import spelt_here
from fcmae.settings.length import is_extensible, length_names, refusal
from fcmae.settings.reading import forbidden_changes, to_yaml


class RunFolder:
    """Names the files of a run.

    config.yaml metrics.jsonl images.jsonl held_out.jsonl validation.jsonl skipped_files.txt
    files.txt scores.txt first_batch.png loss_curve.png health.png origin.txt finished.txt lock
    masks.json start_features.safetensors
    tensorboard/ checkpoints/ reconstructions/ predictions/ export/
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.images = self.path / "images.jsonl"
        self.held_out = self.path / "held_out.jsonl"
        self.validation = self.path / "validation.jsonl"
        self.health = self.path / "health.png"
        self.skipped_files = self.path / "skipped_files.txt"
        self.files = self.path / "files.txt"
        self.first_batch = self.path / "first_batch.png"
        self.loss_curve = self.path / "loss_curve.png"
        self.checkpoints = self.path / "checkpoints"
        self.reconstructions = self.path / "reconstructions"
        self.masks = self.path / "masks.json"
        self.predictions = self.path / "predictions"
        self.export = self.path / "export"
        self.origin = self.path / "origin.txt"
        self.start_features = self.path / "start_features.safetensors"
        self.finished = self.path / "finished.txt"
        self._lock: IO[str] | None = None

    def read_origin(self) -> str:
        """Return the origin and licence of the weights that the run started from; "" of none."""
        try:
            return " ".join(self.origin.read_text(encoding="utf-8").split())
        except OSError:
            return ""

    def to_look_at(self) -> str:
        """Name the pictures of the run, and the command that shows its curves; "" of none."""
        names = ("reconstructions", "predictions", "health.png", "loss_curve.png")
        there = [self.path / name for name in (*names, "confusion_matrix.png")]
        said = [f"Look at {', '.join(str(path) for path in there if path.exists())}."]
        if (self.path / "tensorboard").is_dir():
            said += [f"Curves: {shlex.join(['tensorboard', '--logdir', str(self.path)])}"]
        return "\n".join(said) if any(path.exists() for path in there) else ""

    def open(self, config: Any, *, report: Callable[[str], None] = print) -> bool:
        """Create the folder and its config.yaml, or check that it holds the run of `config`.

        Returns:
            Whether its run had another length. config.yaml still says that one: whoever has seen
            that the run can go on calls `change_length` or `record`.

        Args:
            config: the settings, a dataclass of sections.
            report: called with one sentence when the file system has no locks.

        Raises:
            ConfigError: another process writes there, the folder holds something else or a run
                with other settings, or it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            names = [path.name for path in self.path.iterdir() if path.name != "lock"]
            # A kill may leave a config.yaml that was not complete yet.
            if not self.config.exists() and not all(name.startswith(PARTIAL) for name in names):
                raise ConfigError(
                    f"run.dir: {self.path} is not empty and holds no run; "
                    "choose a new folder, or one that a run made."
                )
            self._take_lock(report)
            self._remove_partial()
            has_other_length = self.config.exists() and self._has_other_length(config)
            if not has_other_length:
                self.record(config)
        except ConfigError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise ConfigError(
                f"run.dir: {self.path} cannot be written ({error.strerror}); choose a folder that "
                "you may write."
            ) from error
        return has_other_length

    def record(self, config: Any) -> None:
        """Write config.yaml anew; raises OSError."""
        write_text(self.config, to_yaml(config))

    def change_length(self, config: Any, step: int) -> None:
        """Let the run of the open folder go on after `step` to the length in `config`.

        What it made later than that, as a run of another length, is removed; its exported weights
        and scores stay until they are made again. The order is that in which a kill in between
        leaves a folder that either length goes on with.

        Raises:
            OSError: the folder cannot be written.
        """
        self.finished.unlink(missing_ok=True)
        self.record(config)
        CheckpointStore(self.checkpoints).remove_after(step)
        for pictures in (self.reconstructions, self.predictions):
            for path in pictures.glob("step-*.png"):
                number = path.stem.removeprefix("step-")
                if number.isdecimal() and int(number) > step:
                    path.unlink()

    def close(self) -> None:
        """Let another process write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def is_lost(self) -> bool:
        """Whether somebody removed the open folder, or put another in its place."""
        try:
            self.config.stat()
            if self._lock is None:
                return False  # a file system without locks
            here, mine = (self.path / "lock").stat(), os.fstat(self._lock.fileno())
        except FileNotFoundError:
            return True
        except OSError:
            return False  # not now: a file system that does not answer may come back
        return (here.st_dev, here.st_ino) != (mine.st_dev, mine.st_ino)

    def _take_lock(self, report: Callable[[str], None]) -> None:
        """Hold the lock until the process ends, however it ends.

        A POSIX record lock, since worker processes do not inherit it: a killed run's readers may
        live on for seconds and must not keep its successor out.
        """
        path = self.path / "lock"
        lock = path.open("a+", encoding="utf-8")
        try:
            is_taken = take_lock(lock)
        except OSError as error:
            lock.close()
            report(
                f"{path}: this file system has no locks ({error.strerror}); make sure that no "
                "other process trains in this folder."
            )
            return
        except ConfigError:
            lock.close()
            raise
        if not is_taken:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            lock.close()
            raise ConfigError(
                f"run.dir: {self.path} is being written by {holder}; wait for it, stop it, or "
                "choose another folder."
            )
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()

    def _remove_partial(self) -> None:
        """Remove what a kill while writing left behind; under the lock nobody else writes."""
        names = f"{PARTIAL}*"
        left = [*self.export.rglob(names)]  # with the folders for other libraries in it
        for folder in (self.path, self.checkpoints, self.reconstructions):
            left += folder.glob(names)
        for path in left:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # it may have gone with its folder

    def _has_other_length(self, config: Any) -> bool:
        """Whether the run differs in its length; raises ConfigError where it differs otherwise."""
        try:
            saved = spelt_here(yaml.safe_load(self.config.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"run.dir: {self.config} is damaged; restore it, or choose another folder."
            ) from error
        if not CheckpointStore(self.checkpoints).steps():
            return False  # nothing was trained yet: new settings may begin in it
        changed = forbidden_changes(saved, config)
        lengths = {name: changed[name] for name in sorted(changed.keys() & length_names(config))}
        if is_extensible(saved, config):
            changed = {name: changed[name] for name in sorted(changed.keys() - lengths.keys())}
        elif lengths and lengths.keys() == changed.keys():
            raise ConfigError(refusal(self.path, lengths, config))
        if changed:
            listed = "; ".join(
                f"{name} {old} there, {new} now" for name, (old, new) in changed.items()
            )
            raise ConfigError(
                f"run.dir: {self.path} holds a run with other settings ({listed}). Choose another "
                f"run.dir, or continue with --config {self.config}."
            )
        return bool(lengths)
