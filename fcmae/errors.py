"""Every error that a user's input can cause; the console turns each into one sentence.

A message says where, what was given, what is expected and what to do.
"""

from sparse.errors import BackendUnavailableError, UnsupportedModelError

__all__ = [
    "EXPECTED_ERRORS",
    "BackendUnavailableError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiskError",
    "NonFiniteLossError",
    "UnsupportedModelError",
]


class ConfigError(ValueError):
    """A setting or argument is wrong; raised before any work starts."""


class DataError(RuntimeError):
    """The user's images or labels cannot be used as they are."""


class CheckpointError(RuntimeError):
    """A checkpoint or weights file is damaged or does not fit; lists every entry concerned."""


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; all processes stop together."""


class DiskError(RuntimeError):
    """The run stops because nothing can be saved any more; the last good checkpoint stays."""


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
