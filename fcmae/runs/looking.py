"""Looking at a run never fails it: pictures, scores, checks and logs all go through here.

Whatever a look meets, a full disk, a broken library, too little memory, becomes one sentence.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from fcmae.errors import EXPECTED_ERRORS
from fcmae.randomness import unchanged_randomness

Result = TypeVar("Result")
LOGGER = logging.getLogger("fcmae")  # at DEBUG it has the tracebacks that the sentences stand for


class Looks:
    """Does what a run can do without, and says what failed.

    Args:
        report: called with one sentence for each failure.

    Attributes:
        num_refused: failures of the operating system, such as a full disk: what may pass, so that
            another start may make up for them.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._waiting: deque[tuple[str, Callable[[], object]]] = deque()
        self.num_refused = 0

    def look(self, what: str, work: Callable[[], Result]) -> Result | None:
        """Return what `work` returns; None after the sentence "`what` failed ..." when it raises.

        The global generators of random numbers are afterwards as before, whatever happened.
        """
        try:
            with unchanged_randomness():
                return work()
        except Exception as error:  # of whatever library: the training needs none of it
            self.num_refused += isinstance(error, OSError)
            LOGGER.debug("%s", what, exc_info=True)
            self._report(f"{what} failed ({reason_of(error)}); training goes on.")
            return None

    def later(self, what: str, work: Callable[[], object]) -> None:
        """Have `catch_up` look: what is drawn of a start need not keep the first step waiting."""
        self._waiting.append((what, work))

    def catch_up(self) -> None:
        """Do the looks that wait, in their order."""
        while self._waiting:
            self.look(*self._waiting.popleft())


def reason_of(error: Exception) -> str:
    """Return an error in a few words, without a full stop."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, EXPECTED_ERRORS):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
