"""Files that could not be decoded during a run: counted, listed, and too many stop the run."""

from __future__ import annotations

from collections.abc import Iterable

from fcmae.durable import write_text
from fcmae.errors import DataError
from fcmae.run_folder import RunFolder

Problem = tuple[str, str]  # path and reason


class SkippedFiles:
    """The distinct undecodable files of a run.

    Args:
        folder: whose skipped_files.txt lists them, one "path<TAB>reason" per line.
        num_images: files of the run.
        max_share: stop when more than this share of them is undecodable.
    """

    def __init__(self, folder: RunFolder, num_images: int, max_share: float) -> None:
        self._folder = folder
        self._num_images = num_images
        self._max_share = max_share
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, problems: Iterable[Problem]) -> list[Problem]:
        """Note files, and return those not known before."""
        new = [(path, reason) for path, reason in problems if path not in self._reasons]
        self._reasons.update(new)
        return new

    def write(self) -> None:
        """Write skipped_files.txt, sorted by path."""
        lines = [f"{path}\t{reason}\n" for path, reason in sorted(self._reasons.items())]
        write_text(self._folder.skipped_files, "".join(lines))

    def check_share(self) -> None:
        """Raise DataError with a summary when too large a share is undecodable."""
        share = len(self) / self._num_images
        if share > self._max_share:
            examples = "; ".join(
                f"{path!r} {reason}" for path, reason in sorted(self._reasons.items())[:3]
            )
            raise DataError(
                f"data.path: {len(self)} of {self._num_images} files cannot be decoded "
                f"({share:.1%}, more than data.max_skipped_share {self._max_share:.1%}): "
                f"{examples}. All are listed in {self._folder.skipped_files}; repair or remove "
                "them, or raise data.max_skipped_share."
            )

    def state_dict(self) -> list[list[str]]:
        """Return plain data for a checkpoint."""
        # Names that are no UTF-8 carry surrogates, which a checkpoint's reader refuses.
        return [
            [path.encode(errors="surrogateescape").hex(), reason.encode(errors="replace").decode()]
            for path, reason in self._reasons.items()
        ]

    def load_state_dict(self, state: list[list[str]]) -> None:
        """Continue from what `state_dict` returned."""
        self._reasons = {
            bytes.fromhex(path).decode(errors="surrogateescape"): reason for path, reason in state
        }
