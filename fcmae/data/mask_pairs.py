"""Which mask belongs to which image: in a folder of its own by the same name, or beside it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from fcmae.data.image_list import ImageList
from fcmae.data.readers import split_item
from fcmae.data.recorded import roots_of
from fcmae.errors import ConfigError

MASK_EXTENSIONS = (".png", ".tif", ".tiff", ".npy", ".bmp", ".gif", ".pgm", ".ppm", ".webp")
# Only to be told that they cannot be used.
LOSSY_EXTENSIONS = (".jpg", ".jpeg")
SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class MaskPlace:
    """Where masks lie.

    Attributes:
        folder: of the masks, each below it as its image is below its own; None: beside the image.
        suffix: what a mask's name adds to the image's stem, with or without an extension.
        setting: that names the folder, for messages.
    """

    folder: str | None
    suffix: str = ""
    setting: str = "data.masks"

    def is_named_as_mask(self, path: str) -> bool:
        """Whether a file lies among the images and has the name of a mask."""
        if self.folder is not None or not self.suffix:
            return False
        name = os.path.basename(path)
        stem, extension = os.path.splitext(name)
        return name.endswith(self.suffix) or (
            stem.endswith(self.suffix) and extension.lower() in MASK_EXTENSIONS + LOSSY_EXTENSIONS
        )


def pair(images: ImageList, place: MaskPlace) -> tuple[ImageList, dict[str, str], list[str]]:
    """Return the images that have a mask, {image: mask}, and the images that have none.

    Images that are masks themselves, by their name, are left out.

    Raises:
        ConfigError: the folder of masks does not exist or lies among the images; an image has two
            masks; none has any.
    """
    kept = [n for n, path in enumerate(images.paths) if not place.is_named_as_mask(path)]
    images = _without_masks(images, kept)
    find = _Folder(place, images).find if place.folder is not None else _beside(place)
    found: dict[str, str] = {}
    missing = []
    for path in images.paths:
        masks = find(path)
        if len(masks) > 1:
            raise ConfigError(
                f"{place.setting}: {path!r} has {len(masks)} masks, {masks[0]!r} and {masks[1]!r}; "
                "leave one of them."
            )
        if masks:
            found[path] = masks[0]
        else:
            missing.append(path)
    if not found:
        example = missing[0] if missing else "an image"
        stem = os.path.splitext(os.path.basename(split_item(example)[0]))[0]
        where = place.folder or os.path.dirname(example)
        raise ConfigError(
            f"{place.setting}: no mask was found for any of the {len(missing)} images; that of "
            f"{example!r} would be {os.path.join(where, stem + place.suffix)!r} with one of "
            f"{' '.join(MASK_EXTENSIONS)}."
        )
    has_mask = [n for n, path in enumerate(images.paths) if path in found]
    return (images if not missing else images.select(has_mask)), found, missing


def missing_sentence(missing: Sequence[str]) -> str:
    """Say which images have no mask."""
    named = ", ".join(map(repr, missing[:SHOWN]))
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return f"{len(missing)} images have no mask: {named}{more}"


def _without_masks(images: ImageList, kept: list[int]) -> ImageList:
    """Return the images that are no masks; none has a label: their pixels have."""
    bare = dataclasses.replace(images, labels=None, classes=None)
    if len(kept) == len(images):
        return bare
    left_out = len(images) - len(kept)
    bare = bare.select(kept)
    if bare.accounting is not None:
        counts = dataclasses.replace(
            bare.accounting,
            num_images=bare.accounting.num_images - left_out,
            masks=bare.accounting.masks + left_out,
        )
        bare = dataclasses.replace(bare, accounting=counts)
    return bare


class _Folder:
    """The masks below a folder, by their names without extension."""

    def __init__(self, place: MaskPlace, images: ImageList) -> None:
        assert place.folder is not None
        folder = os.path.expanduser(place.folder)
        if not os.path.isdir(folder):
            raise ConfigError(
                f"{place.setting}: {place.folder!r} is no folder (looked for it from "
                f"{os.getcwd()}); name the folder of the masks."
            )
        whole = os.path.join(os.path.realpath(folder), "")
        inside = [path for path in images.paths if os.path.realpath(path).startswith(whole)]
        if inside:
            raise ConfigError(
                f"{place.setting}: {place.folder!r} lies inside of the images' folder, so that "
                f"masks such as {inside[0]!r} were taken for images; move it, name the folder of "
                f"the images alone, or leave it out: --data.exclude '{folder}/*'."
            )
        self._suffix = place.suffix
        self._roots = roots_of(images)
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for parent, folders, files in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(files):
                stem, extension = os.path.splitext(file)
                if extension.lower() in MASK_EXTENSIONS + LOSSY_EXTENSIONS:
                    path = os.path.join(parent, file)
                    name = os.path.normpath(os.path.join(os.path.relpath(parent, folder), stem))
                    self._by_name.setdefault(name, []).append(path)
                    self._by_stem.setdefault(stem, []).append(path)

    def find(self, path: str) -> list[str]:
        """Return the masks of an image: of the same name below the folder, else of that stem."""
        file, _ = split_item(path)
        stem = os.path.splitext(file)[0] + os.path.splitext(self._suffix)[0]
        for root in sorted(self._roots, key=len, reverse=True):
            name = os.path.relpath(stem, root or ".")
            if name in self._by_name:
                return self._wanted(self._by_name[name])
        found = self._wanted(self._by_stem.get(os.path.basename(stem), []))
        return found if len(found) == 1 else []

    def _wanted(self, paths: list[str]) -> list[str]:
        extension = os.path.splitext(self._suffix)[1]
        return [path for path in paths if not extension or path.endswith(extension)]


def _beside(place: MaskPlace):  # type: ignore[no-untyped-def]
    known = os.path.splitext(place.suffix)[1] or place.suffix.startswith(".")
    extensions = ("",) if known else MASK_EXTENSIONS + LOSSY_EXTENSIONS
    listed: dict[str, set[str]] = {}

    def find(path: str) -> list[str]:
        folder, name = os.path.split(split_item(path)[0])
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(folder or "."))
            except OSError:
                listed[folder] = set()
        stem = os.path.splitext(name)[0] + place.suffix
        names = [stem + extension for extension in extensions]
        return [os.path.join(folder, one) for one in names if one in listed[folder]]

    return find
