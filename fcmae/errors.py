"""Every error that a user's input can cause, and the exit statuses of the console.

A message says where, what was given, what is expected and what to do; the console prints it as one
sentence.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator

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
    "abandon_dead_streams",
    "complain",
    "descriptor_advice",
    "is_out_of_memory",
    "lacks_descriptors",
    "remark",
    "status_of",
    "writing",
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


@contextlib.contextmanager
def writing(what: str, advice: str = "name another file") -> Iterator[None]:
    """Raise what a disk refuses inside as a ConfigError.

    Args:
        what: the option that names the place, and the place: "--output: 'a.csv'".
        advice: what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{what} cannot be written ({reason}); {advice}.") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had: torch has a class for it on GPUs and a text on CPUs."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def lacks_descriptors(error: BaseException | str) -> bool:
    """Whether what failed, or made it fail, is that too many files are open."""
    cause: BaseException | None = error if isinstance(error, BaseException) else None
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return True
        cause = cause.__cause__ or cause.__context__
    return os.strerror(errno.EMFILE) in str(error)


def descriptor_advice() -> str:
    """Say how to allow more open files than this process may have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit for a process
        return "close other programs"
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return f"allow more open files (ulimit -n 4096; it is {allowed})"


def _system_sentence(error: OSError) -> str:
    """Say what the system refused, of which file, and what to change."""
    reason = error.strerror or str(error)
    where = "the terminal, or what it stands for" if error.filename is None else error.filename
    advice = {
        errno.ENOSPC: "make room there",
        errno.EDQUOT: "make room there",
        errno.EFBIG: "allow larger files",
        errno.ENOENT: "it is gone, or was never there: see to it",
        errno.EPIPE: "whoever read it is gone",
        errno.EAGAIN: "allow more processes (ulimit -u), or use fewer",
    }.get(error.errno or 0, "mend that")
    if lacks_descriptors(error):
        advice = descriptor_advice()
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    return f"{where}: {reason}; {advice}, and start the same command again."


def abandon_dead_streams() -> None:
    """Let what cannot be printed go nowhere: Python would try again as it ends, and fail then."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def status_of(work: Callable[[], int | None]) -> int:
    """Do a command's work; return its exit status, after one sentence on stderr if it failed.

    An exception that no user can cause goes on.
    """
    try:
        return _status_of(work)
    finally:
        abandon_dead_streams()


def _status_of(work: Callable[[], int | None]) -> int:
    try:
        status = work()
        sys.stdout.flush()  # now, that a full disk behind it is not found out too late
    except KeyboardInterrupt:
        return complain("interrupted.", INTERRUPTED_AT_ONCE)
    except (DiskError, NonFiniteLossError) as error:
        return complain(str(error), FAILED)
    except EXPECTED_ERRORS as error:
        return complain(str(error))
    except OSError as error:
        if error.errno is None:
            raise
        return complain(_system_sentence(error), FAILED)
    except UnicodeEncodeError as error:
        shown = error.object[max(0, error.start - 60) : error.end + 60]
        return complain(
            f"{shown!r}: the locale of this process has no such letters; set PYTHONUTF8=1, "
            "or LC_ALL to one with UTF-8.",
        )
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
        with contextlib.suppress(OSError):  # nobody looks any more
            print(f"fcmae: {sentence}", file=sys.stderr, flush=True)


def complain(message: str, status: int = MISTAKE) -> int:
    """Print one sentence about what went wrong; return the exit status."""
    with contextlib.suppress(OSError):  # the status says it, too
        print(f"fcmae: error: {message}", file=sys.stderr)
    return status
