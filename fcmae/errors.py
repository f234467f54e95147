"""Every error that a user's input can cause, and the exit statuses of the console.

A message says where, what was given, what is expected and what to do; the console prints it as one
sentence.
"""

import os
import sys
from collections.abc import Callable

from sparse import BackendUnavailableError, UnsupportedModelError

__all__ = [
    "DONE",
    "EXPECTED_ERRORS",
    "FAILED",
    "INTERRUPTED",
    "INTERRUPTED_AT_ONCE",
    "MISTAKE",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiskError",
    "NonFiniteLossError",
    "UnsupportedModelError",
    "complain",
    "is_out_of_memory",
    "remark",
    "status_of",
]


DONE = 0
FAILED = 1  # a check or a training failed
MISTAKE = 2  # of the user's: nothing was started
INTERRUPTED_AT_ONCE = 128 + 2  # by Ctrl-C, before or after the training
INTERRUPTED = 75  # by a signal, with a checkpoint written: start the same command again


class ConfigError(ValueError):
    """A setting or argument is wrong; raised before any work starts."""


class DataError(RuntimeError):
    """The user's images or labels cannot be used as they are."""


class CheckpointError(RuntimeError):
    """A checkpoint or weights file is damaged or does not fit; lists every entry concerned."""


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; all processes stop together."""


class DiskError(RuntimeError):
    """A disk takes or gives nothing now; the run stops, and the last good checkpoint stays."""


# What the console tells in one sentence; any other exception is a bug and keeps its traceback.
EXPECTED_ERRORS = (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    DataError,
    DiskError,
    NonFiniteLossError,
    UnsupportedModelError,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: torch has a class for it on GPUs and a text on CPUs."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def status_of(work: Callable[[], int | None]) -> int:
    """Do a command's work; return its exit status, after one sentence on stderr if it failed.

    An exception that no user can cause goes on.
    """
    try:
        status = work()
    except KeyboardInterrupt:
        return complain("interrupted.", INTERRUPTED_AT_ONCE)
    except (DiskError, NonFiniteLossError) as error:
        return complain(str(error), FAILED)
    except EXPECTED_ERRORS as error:
        return complain(str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        return complain(
            f"there is not enough memory ({reason}). Lower train.batch_size (train.accumulate "
            "keeps the effective batch), set model.checkpoint_activations, or take a smaller "
            "model; fcmae plan tells what fits.",
            FAILED,
        )
    return DONE if status is None else status


def remark(sentence: str) -> None:
    """Print one sentence on stderr that is no error; of processes together, the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"fcmae: {sentence}", file=sys.stderr, flush=True)


def complain(message: str, status: int = MISTAKE) -> int:
    """Print one sentence about what went wrong; return the exit status."""
    print(f"fcmae: error: {message}", file=sys.stderr)
    return status
