"""Locks of files between processes: one writer for a run folder, one filler for a cache.

They are POSIX record locks, which end with the process that took them, however it ends, and which
its children do not keep.
"""

import errno
import sys
from typing import IO, Any

from fcmae.errors import ConfigError


def take_lock(file: IO[Any], *, wait: bool = False) -> bool:
    """Lock an open, writable file for this process alone, until it is closed.

    Returns:
        Whether it is locked now; False when another process has it and `wait` is off.

    Raises:
        ConfigError: the system has no such locks.
        OSError: the file system has none.
    """
    try:
        import fcntl
    except ImportError as error:  # Windows
        raise ConfigError(
            f"this system ({sys.platform}) has no POSIX locks of files, so that two processes "
            "could spoil one folder; use Linux, on Windows for example in WSL."
        ) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True
