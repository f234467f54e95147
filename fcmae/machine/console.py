"""What a command asks of the process it runs in: files, letters of its screen, quick loading.

The screen of a command may know fewer letters than the names of files have.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import io
import sys
from collections.abc import Iterator

ENOUGH_FILES = 65536  # an unlimited number makes some programs close as many at their start
SHOW = "fcmae.show"  # name of the rule for letters that a screen does not have


def allow_open_files() -> None:
    """Raise this process's limit of open files as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has none
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage inside: loading libraries makes none, and looking for it takes a fifth."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def show_all_letters() -> None:
    """Print bytes of names as they are, and letters that the terminal does not have as escapes."""
    codecs.register_error(SHOW, _show)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=SHOW)


def _show(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    shown = [
        letter.encode("utf-8", "surrogateescape")
        if "\udc80" <= letter <= "\udcff"
        else letter.encode("ascii", "backslashreplace")
        for letter in letters
    ]
    return b"".join(shown), error.end
