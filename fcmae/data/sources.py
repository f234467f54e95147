"""From what `data.path` and `data.label` say to lists of images, and lists cut in two."""

from collections.abc import Sequence

from fcmae.data.elpv import open_elpv
from fcmae.data.files import ImageList, find_images
from fcmae.data.readers import EVERYTHING, Wanted
from fcmae.errors import ConfigError

ELPV = "elpv"


def open_images(
    path: str | Sequence[str],
    label: str | None = None,
    where: str = "data.path",
    exclude: str | Sequence[str] | None = None,
    wanted: Wanted = EVERYTHING,
) -> ImageList:
    """Return the images of `path`: "elpv" (built in; a folder of that name is "./elpv"), or files.

    `label` chooses among the labels of elpv; a folder's labels are its class folders. `exclude`
    leaves files out, and `wanted` says what arrays of images hold; see `find_images`.

    Raises:
        ConfigError: as `find_images` and `open_elpv`; elpv mixed with folders; a label that
            chooses nothing.
    """
    paths = [path] if isinstance(path, str) else list(path)
    if paths == [ELPV]:
        return open_elpv(label)
    if ELPV in paths:
        raise ConfigError(f"{where}: elpv cannot be mixed with folders; a folder is ./elpv.")
    if label is not None:
        raise ConfigError(
            f"data.label: {label!r} chooses a label of elpv, but {where} is {path!r}, whose labels "
            "are the names of its class folders; remove data.label."
        )
    return find_images(path, where, exclude, wanted)
