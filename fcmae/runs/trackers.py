"""Services beside TensorBoard that get a run's numbers: Weights & Biases and MLflow, as extras.

Each is asked for one run, which a continued run of ours continues; `trackers.json` in the run
folder has its name there. What they raise is told by Looks, and ends nothing but the telling.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from fcmae.errors import ConfigError
from fcmae.runs.durable import write_text

FILE = "trackers.json"
TENSORBOARD = "tensorboard"
TITLES = {"wandb": "numbers at Weights & Biases", "mlflow": "numbers at MLflow"}
PATIENCE_SECONDS = 30  # for a server that does not answer
MOST_PARAMETERS = 100  # of MLflow, in one request
_NO_NAME = re.compile(r"[^\w\-./ ]")  # what MLflow does not take in the name of a metric
# What MLflow reads of the environment whenever it asks a server, or writes files.
_BOUNDS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # else it wants a database, and a package for it
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else a thread tells its makers
}


class Tracker(Protocol):
    """Where the numbers of a run go, beside metrics.jsonl."""

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step."""

    def close(self) -> None:
        """Send what waits, and end."""


@dataclass(frozen=True)
class Subject:
    """The run that a tracker is told of.

    Attributes:
        folder: of the run.
        project: under which it stands there.
        settings: {"section.name": value}.
    """

    folder: Path
    project: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What it is called there."""
        return self.folder.absolute().name

    def recall(self, tracker: str) -> str | None:
        """Return the name of the run there that this one continues, or None."""
        try:
            known = json.loads((self.folder / FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        found = known.get(tracker) if isinstance(known, dict) else None
        return found if isinstance(found, str) else None

    def remember(self, tracker: str, name: str) -> None:
        """Note the name of the run there; raises OSError."""
        known = {other: found for other in TITLES if (found := self.recall(other)) is not None}
        write_text(self.folder / FILE, json.dumps({**known, tracker: name}) + "\n")


class WandbRun:
    """A run of Weights & Biases; `WANDB_MODE=offline` keeps it in the folder `wandb` of the run.

    A step that is written again after a kill stands there twice, with the same values: its axis
    is our step, since theirs only grows.
    """

    def __init__(self, subject: Subject) -> None:
        import wandb

        name = subject.recall("wandb") or secrets.token_hex(4)
        self._run: Any = wandb.init(
            project=subject.project,
            name=subject.name,
            id=name,
            resume="allow",
            dir=str(subject.folder),
            config=dict(subject.settings),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                init_timeout=PATIENCE_SECONDS,
                login_timeout=PATIENCE_SECONDS,
                save_code=False,
            ),
        )
        subject.remember("wandb", name)
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Send what waits, and end."""
        self._run.finish()


class MlflowRun:
    """A run of MLflow: of the server that `MLFLOW_TRACKING_URI` names, else of files in `mlruns`.

    Settings are its parameters; what cannot be in the name of a metric becomes "_".
    """

    def __init__(self, subject: Subject) -> None:
        with _bounded():
            from mlflow.entities import Metric, Param
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            files = (subject.folder / "mlruns").absolute().as_uri()
            self._metric: Any = Metric
            self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or files)
            known = subject.recall("mlflow")
            if known is not None:
                with contextlib.suppress(MlflowException):  # it was removed there: begin anew
                    self._client.update_run(known, status="RUNNING")
                    self._name = known
                    return
            self._name = self._begin(subject, Param)
        subject.remember("mlflow", self._name)

    def _begin(self, subject: Subject, parameter: Any) -> str:
        known = self._client.get_experiment_by_name(subject.project)
        experiment = (
            self._client.create_experiment(subject.project)
            if known is None
            else known.experiment_id
        )
        run = self._client.create_run(experiment, run_name=subject.name)
        parameters = [parameter(key, str(value)) for key, value in subject.settings.items()]
        for start in range(0, len(parameters), MOST_PARAMETERS):
            part = parameters[start : start + MOST_PARAMETERS]
            self._client.log_batch(run.info.run_id, params=part)
        name: str = run.info.run_id
        return name

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of a step."""
        now = int(1000 * time.time())
        metrics = [
            self._metric(_NO_NAME.sub("_", name), value, now, step)
            for name, value in values.items()
        ]
        with _bounded():
            self._client.log_batch(self._name, metrics=metrics)

    def close(self) -> None:
        """Say that this run has ended, until it is continued."""
        with _bounded():
            self._client.set_terminated(self._name)


_TRACKERS: dict[str, Callable[[Subject], Tracker]] = {"wandb": WandbRun, "mlflow": MlflowRun}


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is missing; nothing is imported."""
    for name in names:
        if name != TENSORBOARD and find_spec(name) is None:
            raise ConfigError(
                f"log.to: {name} is not installed; run pip install 'fcmae[{name}]', or leave "
                f"{name} out of log.to."
            )


def openers(names: Sequence[str], subject: Subject) -> dict[str, Callable[[], Tracker]]:
    """Return what opens each tracker but TensorBoard, by its title."""

    def opener(name: str) -> Callable[[], Tracker]:
        return lambda: _TRACKERS[name](subject)

    return {TITLES[name]: opener(name) for name in dict.fromkeys(names) if name in TITLES}


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let MLflow write files, and give up soon on a server, unless the user says otherwise."""
    added = {name: value for name, value in _BOUNDS.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
