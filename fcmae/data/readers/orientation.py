"""Pictures stored turned or mirrored, as EXIF and TIFF say, brought upright."""

from typing import Any

import numpy as np

from fcmae.data.parts import SIDEWAYS, Choose, Part

EXIF_ORIENTATION = 0x0112  # TIFF has the same tag
_MIRRORED = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}


def orientation_of(picture: Any) -> object:
    """Return the orientation that a picture opened by Pillow names, 1 where it names none."""
    try:
        return picture.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing; the pixels are good
        return 1


def upright(values: np.ndarray, orientation: object) -> np.ndarray:
    """Turn [H, W, ...] as the orientation 1..8 says; other values mean nothing."""
    if orientation in SIDEWAYS:
        values = values.swapaxes(0, 1)
    axes = _MIRRORED.get(orientation) if isinstance(orientation, int) else None
    return values if axes is None else np.flip(values, axes)


def as_seen(height: int, width: int, orientation: object) -> tuple[int, int]:
    """Return the (height, width) at which a stored picture is seen."""
    return (width, height) if orientation in SIDEWAYS else (height, width)


def stored_part(choose: Choose, height: int, width: int, orientation: object) -> Part:
    """Return where the part that `choose` wants lies in a stored picture of height x width px."""
    return choose(*as_seen(height, width, orientation)).as_stored(orientation, height, width)
