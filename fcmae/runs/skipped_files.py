"""Files of a run that could not be used: counted, listed, and too many stop the run."""

import os
from collections.abc import Iterable

from fcmae.errors import DataError
from fcmae.runs.durable import write_text
from fcmae.runs.folder import RunFolder

Problem = tuple[str, str]  # path and reason


class SkippedFiles:
    """The distinct files that a run does without, in the order in which it met them.

    Args:
        folder: whose skipped_files.txt lists them, one "path<TAB>reason" per line.
        num_images: files of the run.
        max_share: stop when more than this share of them is skipped.
    """

    def __init__(self, folder: RunFolder, num_images: int, max_share: float) -> None:
        self._folder = folder
        self._num_images = num_images
        self._max_share = max_share
        self._reasons: dict[str, str] = {}
        self._num_unlisted = 0
        self._is_written = False

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, problems: Iterable[Problem]) -> list[Problem]:
        """Note files that cannot be decoded, and return those not known before."""
        new = {path: reason for path, reason in problems if path not in self._reasons}
        self._reasons.update(new)
        self._is_written &= not new
        return list(new.items())

    def add_unlisted(self, problems: Iterable[Problem], num_usable: int = 0) -> None:
        """Note what was left out when a new run made its list: links to nothing, folders, ...

        `num_usable` files are left out although nothing is wrong with them: held out.
        """
        self._num_unlisted += len(self.add(problems)) + num_usable

    def write(self) -> None:
        """Write skipped_files.txt, sorted by path, unless it is up to date.

        Raises:
            OSError: it cannot be written; the next call tries again.
        """
        if self._is_written or not self._reasons:
            return
        lines = [f"{_one_line(path)}\t{reason}\n" for path, reason in sorted(self._reasons.items())]
        write_text(self._folder.skipped_files, "".join(lines))
        self._is_written = True

    def check_share(self) -> None:
        """Raise DataError with a summary when too large a share is skipped."""
        num_files = self._num_images + self._num_unlisted
        share = len(self) / num_files
        if share > self._max_share:
            examples = "; ".join(
                f"{path!r}: {reason}" for path, reason in sorted(self._reasons.items())[:3]
            )
            raise DataError(
                f"data.path: {len(self)} of {num_files} files cannot be used "
                f"({share:.1%}, more than data.max_skipped_share {self._max_share:.1%}): "
                f"{examples}. All are listed in {self._folder.skipped_files}; repair or remove "
                "them, or raise data.max_skipped_share."
            )

    def state_dict(self) -> dict[str, object]:
        """Return plain data for a checkpoint."""
        # Names that are no UTF-8 carry surrogates, which a checkpoint's reader refuses.
        files = [
            [path.encode(errors="surrogateescape").hex(), reason.encode(errors="replace").decode()]
            for path, reason in self._reasons.items()
        ]
        return {"files": files, "num_unlisted": self._num_unlisted}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from what `state_dict` returned."""
        files: list[list[str]] = state["files"]  # type: ignore[assignment]
        self._reasons = {os.fsdecode(bytes.fromhex(path)): reason for path, reason in files}
        self._num_unlisted = int(state["num_unlisted"])  # type: ignore[call-overload]
        self._is_written = False


def _one_line(path: str) -> str:
    """Escape what would break the list: names may hold line ends and tabs."""
    return path.translate({9: "\\t", 10: "\\n", 13: "\\r"})
