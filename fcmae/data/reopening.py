"""The images of a run that has begun, from what its folder records; those of now decide nothing."""

import dataclasses
from pathlib import Path

import yaml

from fcmae.data.files import written_roots
from fcmae.data.image_list import ImageList
from fcmae.data.recorded import Recalled, recall
from fcmae.runs.checkpoints import CheckpointStore
from fcmae.runs.folder import RunFolder


def has_begun(folder: RunFolder) -> bool:
    """Whether a run has a checkpoint, and with it images that must stay."""
    return bool(CheckpointStore(folder.checkpoints).steps())


def saved_roots(folder: RunFolder) -> tuple[str, ...]:
    """Return the folders below which the images lay when the run was last started."""
    try:
        saved = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
        return written_roots(saved["data"]["path"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ()  # opening the folder tells what is wrong with it


def recall_training(
    folder: RunFolder, found: ImageList, kept_apart: Recalled | None, max_gone: float
) -> Recalled:
    """Return the training images of a run that has begun.

    Args:
        folder: of the run.
        found: images that the settings name now.
        kept_apart: the others of `found` that the run knows; None where they are not all known.
        max_gone: share that may be gone.

    Raises:
        CheckpointError, DataError, DiskError: as `recall`.
    """
    return recall(
        folder.images,
        found,
        max_gone=max_gone,
        old_roots=saved_roots(folder),
        others=None if kept_apart is None else kept_apart.images.paths,
    )


def recall_apart(file: Path, folder: RunFolder, found: ImageList, what: str) -> Recalled | None:
    """Return the images that a run keeps apart, recorded in `file`; None without such a record.

    Raises:
        CheckpointError, DiskError: as `recall`.
    """
    if not file.exists():
        return None
    recalled = recall(file, found, old_roots=saved_roots(folder), others=None, what=what)
    return recalled._replace(images=dataclasses.replace(recalled.images, problems=()))
