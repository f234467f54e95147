"""Images in a fixed order with what is known about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fcmae.data.accounting import Accounting, Problem
from fcmae.data.class_folders import Part
from fcmae.data.path_list import Labels, PathList, as_indices


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Images in a fixed order, with what is known about them.

    Attributes:
        paths: absolute or as the user wrote them; undecodable names carry surrogate escapes. Any
            sequence of texts may be given; it is kept as a PathList.
        labels: index into `classes` per image, -1 for none, or None when the images have no
            labels; kept as Labels.
        classes: names of the classes, sorted, or None.
        root: the one folder they were found in, or None.
        problems: (path, reason) of folders and entries that could not be read.
        accounting: of every file below the paths, where they were searched.
        parts: {"train", "validation", "test": folder}, where the set is cut in parts.
        part_of: each image's part in the order of `parts`, -1 outside of them; None if not cut.
        why_unlabelled: the reason for no labels; its subject is the path.
        roots: folders of what the user named, one each, below which images have their names.
        recorded_in: the file that records exactly these images for a run; None if they are found.
    """

    paths: Sequence[str]
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] | None = None
    root: str | None = None
    problems: tuple[Problem, ...] = ()
    accounting: Accounting | None = dataclasses.field(default=None, compare=False, repr=False)
    parts: dict[Part, str] = dataclasses.field(default_factory=dict, compare=False)
    part_of: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    why_unlabelled: str = dataclasses.field(default="", compare=False)
    roots: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    recorded_in: Path | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.paths, PathList):
            object.__setattr__(self, "paths", PathList(self.paths))
        if self.labels is not None and not isinstance(self.labels, Labels):
            object.__setattr__(self, "labels", Labels(self.labels))

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Iterable[int] | np.ndarray) -> ImageList:
        """Return the images at `indices`, in that order, with the same classes."""
        chosen = as_indices(indices)
        assert isinstance(self.paths, PathList)
        assert self.labels is None or isinstance(self.labels, Labels)
        return dataclasses.replace(
            self,
            paths=self.paths.select(chosen),
            labels=None if self.labels is None else Labels(self.labels.array[chosen]),
            part_of=None if self.part_of is None else self.part_of[chosen],
            recorded_in=None,
        )

    def part(self, name: Part) -> ImageList:
        """Return the images of one of `parts`.

        Raises:
            KeyError: there is no such part.
        """
        assert self.part_of is not None
        return self.select(np.flatnonzero(self.part_of == list(self.parts).index(name)))
