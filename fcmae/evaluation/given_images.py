"""Images that somebody hands over - paths, arrays, pictures of Pillow - as a list of files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from fcmae.data import ImageList, Reading, open_images
from fcmae.data.decoding import UndecodableImageError, describe_image
from fcmae.errors import DataError

Images: TypeAlias = str | Path | np.ndarray | Image.Image | ImageList | Sequence[Any]
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # that PNG keeps as they are


@contextlib.contextmanager
def as_files(
    images: Images, reading: Reading
) -> Iterator[tuple[ImageList, tuple[str, ...] | None]]:
    """Give a list of files for images of any kind, and names for pictures that are none.

    Pictures in memory are written to a temporary folder, so that one set of rules reads all.

    Raises:
        DataError: there are none.
        TypeError: something that is neither a path nor a picture.
    """
    if isinstance(images, ImageList):
        yield images, None
        return
    if isinstance(images, str | Path):
        yield open_images(str(images), where="IMAGES", wanted=reading.wanted()), None
        return
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
        images = [images]
    if len(images) == 0:
        raise DataError("IMAGES: an empty list; give paths or pictures.")
    if all(isinstance(image, str | Path) for image in images):
        paths = [str(image) for image in images]
        yield open_images(paths, where="IMAGES", wanted=reading.wanted()), None
        return
    with tempfile.TemporaryDirectory(prefix="fcmae-") as folder:
        written = [_written(Path(folder), index, image) for index, image in enumerate(images)]
        yield ImageList(tuple(written)), tuple(map(str, range(len(written))))


def _written(folder: Path, index: int, image: Any) -> str:
    """Write one picture without losing anything, and return its path."""
    if isinstance(image, np.ndarray):
        path = folder / f"{index}.npy"
        np.save(path, image, allow_pickle=False)
    elif isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        path = folder / f"{index}{'.png' if upright.mode in PNG_MODES else '.tiff'}"
        upright.save(path, compress_level=1) if path.suffix == ".png" else upright.save(path)
    else:
        raise TypeError(
            f"IMAGES: number {index} is a {type(image).__name__}, expected paths, arrays or "
            "pictures of Pillow, all of one kind."
        )
    return str(path)


def check_some_used(count: int, problems: Mapping[str, str]) -> None:
    """Raise DataError when none of so many images could be read, by the reason of each."""
    if len(problems) == count:
        path, reason = next(iter(problems.items()))
        raise DataError(f"none of the {count} images can be used; the first is {path!r}: {reason}.")


def check_range(path: str, reading: Reading) -> None:
    """Raise UndecodableImageError for a file whose type ends below the white of `reading`."""
    trained = reading.value_range
    if trained is None or reading.reader is not None:
        return
    about = describe_image(path, reading)
    ends = [end for end in (about.black, about.white) if end is not None]
    if len(ends) == 2 and not about.clips and max(ends) < max(trained):
        raise UndecodableImageError(
            path,
            f"its values end at {max(ends):g}, and the model was trained on "
            f"{trained[0]:g} to {trained[1]:g}",
        )
