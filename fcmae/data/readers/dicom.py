"""Reads DICOM with pydicom (the extra `dicom`): frames, rescaled to their unit, as RGB or grey.

Black and white are the file's window, else all that its stored bits can say.
"""

import logging
from typing import Any

import numpy as np

from fcmae.data.readers import layout as layouts
from fcmae.data.readers.contract import Description, Pixels, Source, UnreadableError, Wanted

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")  # of a file without preamble, as old programs write
SEARCHED_BYTES = 65536  # of a file, for the number of its frames
# Elements as they lie in a file, in either byte order
NUMBER_OF_FRAMES = (b"\x28\0\x08\0", b"\0\x28\0\x08")
PIXELS = (b"\xe0\x7f\x10\0", b"\x7f\xe0\0\x10")
DEFLATED = b"1.2.840.10008.1.2.1.99"  # all elements are compressed
GREYS = ("MONOCHROME1", "MONOCHROME2")


# pydicom reports damage through logging; the error says it once.
logging.getLogger("pydicom").addHandler(logging.NullHandler())


class DicomReader:
    """Reads one frame of a DICOM file; a frame is decoded as a whole."""

    def kind_of(self, source: Source) -> str | None:
        """Return "DICOM" by the magic after the preamble, or the first element without one."""
        head = source.head
        if head[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == MAGIC:
            return "DICOM"
        begins = head[:2] in FIRST_GROUPS and head[3:4] == b"\0"
        names_type = head[4:6].isalpha() and head[4:6].isupper()
        return "DICOM" if begins and (names_type or source.suffix in (".dcm", ".dicom")) else None

    def items(self, source: Source, wanted: Wanted) -> list[str]:
        """Return the numbers of the frames, [""] where there is one."""
        frames = 1 if _is_surely_one(source) else self.describe(source, wanted).images
        return [""] if frames == 1 else [str(number) for number in range(frames)]

    def describe(self, source: Source, wanted: Wanted) -> Description:
        """Return what the elements before the pixels say."""
        return _about(_dataset(source))

    def read(self, source: Source, wanted: Wanted) -> Pixels:
        """Return the part of a frame that is wanted."""
        from pydicom.pixels import apply_color_lut, apply_modality_lut

        dataset = _dataset(source)
        about = _about(dataset)
        layouts.check_size(about.height, about.width)
        number = layouts.number_of(source.item, about.images)
        stored = _frame(source, number, about.images)
        valid = _validity(stored, dataset)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(stored, dataset)
        elif dataset.PhotometricInterpretation in GREYS:
            values = apply_modality_lut(stored, dataset)
        else:
            values = stored
        values = values.astype(about.dtype, copy=False)
        if values.ndim == 2:
            values = values[..., None]
        if wanted.choose is not None:
            top, left, height, width, _ = wanted.choose(about.height, about.width)
            window = slice(top, top + height), slice(left, left + width)
            values, valid = values[window], None if valid is None else valid[window]
        return Pixels(values, None if valid is None or valid.all() else valid, about)


def _is_surely_one(source: Source) -> bool:
    """Whether a file has one frame for certain: its elements before the pixels name no number.

    A million files are asked before a run, and pydicom takes a millisecond for each.
    """
    file = source.opened()
    file.seek(0)
    start = file.read(SEARCHED_BYTES)
    file.seek(0)
    pixels = max(start.find(tag) for tag in PIXELS)
    is_hidden = pixels < 0 or DEFLATED in start
    return not is_hidden and not any(tag in start[:pixels] for tag in NUMBER_OF_FRAMES)


def _frame(source: Source, number: int, images: int) -> np.ndarray:
    """Return the stored values of a frame; of several the others are not read."""
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    source.opened().seek(0)
    if images > 1:
        try:
            return pixel_array(source.opened(), index=number)
        except (AttributeError, ValueError, NotImplementedError):
            source.opened().seek(0)  # of a file without preamble, or whose table is no good
    return pixel_array(dcmread(source.opened(), force=True), index=number)


def _dataset(source: Source) -> Any:
    """Return the elements before the pixels."""
    try:
        from pydicom import dcmread
    except ImportError as error:
        raise UnreadableError(
            "is DICOM, which needs the package pydicom: pip install 'fcmae[dicom]'"
        ) from error
    source.opened().seek(0)
    dataset = dcmread(source.opened(), force=True, stop_before_pixels=True)
    if "Rows" not in dataset or "Columns" not in dataset:
        raise UnreadableError("is a DICOM without a picture")
    return dataset


def _about(dataset: Any) -> Description:
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    samples = int(dataset.get("SamplesPerPixel", 1))
    is_signed = bool(dataset.get("PixelRepresentation", 0))
    allocated = int(dataset.get("BitsAllocated", 8))
    bits = int(dataset.get("BitsStored", allocated))
    bands = 3 if photometric == "PALETTE COLOR" else samples
    dtype = np.dtype(f"{'int' if is_signed else 'uint'}{max(8, allocated)}")
    if photometric == "PALETTE COLOR":
        depth = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        dtype, bits = np.dtype("uint8" if depth == 8 else "uint16"), depth
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        dtype = np.dtype("float32")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if is_signed else (0, 2**bits - 1)
    black: float | None = float(low)
    white: float | None = float(high)
    clips = False
    if photometric in GREYS:
        black, white, dtype = _rescaled(dataset, low, high, dtype)
        window = _window(dataset)
        if window is not None:
            (black, white), clips = window, True
        if photometric == "MONOCHROME1":
            black, white = white, black
    padding = dataset.get("PixelPaddingValue")
    return Description(
        kind="DICOM",
        height=int(dataset.Rows),
        width=int(dataset.Columns),
        bands=bands,
        dtype=dtype,
        bits=bits,
        colour="grey" if bands == 1 else "rgb" if bands == 3 else "bands",
        black=black,
        white=white,
        clips=clips,
        has_mask=padding is not None or dtype.kind == "f",
        images=int(dataset.get("NumberOfFrames", 1) or 1),
        facts={
            "photometric": photometric.lower(),
            "compression": dataset.file_meta.TransferSyntaxUID.name
            if "TransferSyntaxUID" in getattr(dataset, "file_meta", ())
            else "none",
            "range": "the file's window" if clips else "all stored bits",
        },
    )


def _rescaled(
    dataset: Any, low: int, high: int, dtype: np.dtype
) -> tuple[float | None, float | None, np.dtype]:
    """Return black, white and type after the rescaling to the unit of the file."""
    if dataset.get("ModalityLUTSequence"):
        table = dataset.ModalityLUTSequence[0]
        return 0.0, float(2 ** int(table.LUTDescriptor[2]) - 1), np.dtype("uint16")
    slope = float(dataset.get("RescaleSlope", 1) or 1)
    intercept = float(dataset.get("RescaleIntercept", 0) or 0)
    if dtype.kind == "f":
        return None, None, dtype
    if (slope, intercept) == (1, 0):
        return float(low), float(high), dtype
    ends = sorted((low * slope + intercept, high * slope + intercept))
    is_whole = slope.is_integer() and intercept.is_integer()
    return ends[0], ends[1], np.dtype("int32" if is_whole else "float32")


def _window(dataset: Any) -> tuple[float, float] | None:
    """Return the values that the file's first window shows as black and white, if it has one."""
    centre, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if centre is None or width is None or dataset.get("VOILUTSequence"):
        return None
    centre = float(centre[0] if hasattr(centre, "__len__") else centre)
    width = float(width[0] if hasattr(width, "__len__") else width)
    if dataset.get("VOILUTFunction", "LINEAR") == "LINEAR":  # PS3.3 C.11.2.1.2.1
        centre, width = centre - 0.5, width - 1
    return (centre - width / 2, centre + width / 2) if width > 0 else None


def _validity(stored: np.ndarray, dataset: Any) -> np.ndarray | None:
    """Return where stored values are not padding; None where the file has none."""
    valid = None
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and stored.ndim == 2 and not isinstance(padding, bytes):
        ends = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        valid = (stored < ends[0]) | (stored > ends[1])
    if stored.dtype.kind == "f" and np.isnan(stored).any():
        present = ~np.isnan(stored)
        valid = present if valid is None else valid & present
    return valid
