"""Every file below the given paths, counted: an image, left out with a reason, or no image."""

import collections
from collections.abc import Mapping
from dataclasses import dataclass, field

Problem = tuple[str, str]  # path and reason
MOST_KINDS = 4  # of files that are no images, named in a sentence


@dataclass
class Accounting:
    """Counts of files and of images in them; they add up to `num_entries`.

    Attributes:
        num_images: taken for images.
        problems: (path, reason) of files, and of lines of lists, that cannot be used.
        folders: (path, reason) of folders that could not be read: what lies in them is unknown.
        no_images: {kind: count} of other files, by suffix.
        repeated: files that were named twice and count once as images.
        excluded: images left out on request.
        notes: sentences about the way in which files were found.
        masks: images that say where another one has data.
        stacks: files that hold several images, each of which is counted.
        in_stacks: the images in these.
    """

    num_images: int = 0
    problems: list[Problem] = field(default_factory=list)
    folders: list[Problem] = field(default_factory=list)
    no_images: collections.Counter[str] = field(default_factory=collections.Counter)
    repeated: int = 0
    excluded: int = 0
    notes: list[str] = field(default_factory=list)
    masks: int = 0
    stacks: int = 0
    in_stacks: int = 0

    @property
    def num_entries(self) -> int:
        """All that was met and is counted: files, and of those with many images each of these."""
        others = len(self.problems) + sum(self.no_images.values())
        return self.num_images + others + self.repeated + self.excluded + self.masks

    @property
    def num_files(self) -> int:
        """All files that were met."""
        return self.num_entries - self.in_stacks + self.stacks

    def told(self) -> tuple[Problem, ...]:
        """Return what must be said: files and folders that cannot be used."""
        return (*self.folders, *self.problems)


def kinds_sentence(kinds: Mapping[str, int], most: int = MOST_KINDS) -> str:
    """Return "3 .json, 2 .txt and 1 of other kinds", most frequent first."""
    order = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{count:,} {kind}" for kind, count in order[:most])
    rest = sum(count for _, count in order[most:])
    return f"{shown} and {rest:,} of other kinds" if rest else shown


def account_sentence(
    accounting: Accounting, *, used: int, held_out: int = 0, skipped: int | None = None
) -> str:
    """Say in one sentence what became of every file; the counts add up.

    Args:
        accounting: of the files that were found.
        used: images that are trained on or described.
        held_out: images kept apart for scores.
        skipped: files that cannot be used, the unreadable ones among them; None: those known now.
    """
    skipped = len(accounting.problems) if skipped is None else skipped
    no_images = sum(accounting.no_images.values())
    num_entries = accounting.num_entries
    # Lists of one's own, draws per class, a continued run: what is left was found and is not read.
    unused = num_entries - used - held_out - skipped - no_images
    unused -= accounting.repeated + accounting.excluded + accounting.masks
    parts = [f"{used:,} used"]
    for count, name in (
        (held_out, "held out"),
        (skipped, "skipped with a reason"),
        (accounting.excluded, "excluded"),
        (accounting.masks, "masks of others"),
        (accounting.repeated, "named twice"),
        (unused, "not chosen"),
    ):
        if count > 0:
            parts.append(f"{count:,} {name}")
    if no_images:
        parts.append(f"{no_images:,} no images ({kinds_sentence(accounting.no_images)})")
    sentence = f"{accounting.num_files:,} file{'s' * (accounting.num_files != 1)}"
    if accounting.stacks:
        sentence += (
            f", {accounting.stacks:,} of them with {accounting.in_stacks:,} images, which makes "
            f"{num_entries:,}"
        )
    sentence += ": " + ", ".join(parts)
    if accounting.folders:
        sentence += f"; {len(accounting.folders):,} folders cannot be read"
    return sentence + "."
