"""The rules by which files are read, in two sentences: said once, at the start of a run."""

from collections.abc import Iterable, Sequence

from fcmae.data.decoding import UndecodableImageError, describe_image
from fcmae.data.readers import Description
from fcmae.data.reading import Reading

MOST_RANGES = 3  # of different files, in the sentence


def reading_sentences(reading: Reading, paths: Iterable[str]) -> list[str]:
    """Return what becomes of bands and transparency, and of values and pixels without data.

    Args:
        reading: of the run.
        paths: some of its files, whose headers say which of the rules matter.
    """
    headers: list[Description] = []
    for path in paths:
        try:
            headers.append(describe_image(path, reading))
        except UndecodableImageError:
            continue  # met, counted and listed by the training
    bands = f"bands: {_bands(reading, headers)}{_transparency(reading, headers)}{_rest(headers)}."
    return [bands, f"values: {_values(reading, headers)}; {_holes(reading, headers)}."]


def _bands(reading: Reading, headers: Sequence[Description]) -> str:
    if reading.bands is not None:
        picked = ", ".join(map(str, reading.bands))
        return f"number {picked} of each file, from 0 (data.bands), as they are"
    if reading.in_chans not in (1, 3):
        return f"all {reading.in_chans} of each file, as they are"
    kinds = {about.colour for about in headers}
    said = []
    if reading.in_chans == 3:
        said += ["red, green and blue"] if kinds != {"grey"} else []
        said += ["grey three times"] if "grey" in kinds else []
    else:
        said += ["grey"] if kinds != {"rgb"} else []
        said += ["the luma of colours"] if "rgb" in kinds else []
    said += ["inks (CMYK) as colours"] if "cmyk" in kinds else []
    count = sum(
        about.colour in ("grey", "rgb") and about.bands > _taken(about) for about in headers
    )
    rest = f", the bands after these left out in {count} of the first {len(headers)} files"
    return " and ".join(said) + (f"{rest}, which multiply nothing" if count else "")


def _taken(about: Description) -> int:
    """Return how many bands are colours or transparency."""
    return (1 if about.colour == "grey" else 3) + (about.alpha is not None)


def _rest(headers: Sequence[Description]) -> str:
    """Say where more lies in a file than is read."""
    notes = [about.note for about in headers if about.note]
    if not notes:
        return ""
    return f"; {len(notes)} of the first {len(headers)} files hold more than is read ({notes[0]})"


def _transparency(reading: Reading, headers: Sequence[Description]) -> str:
    if not any(about.alpha is not None for about in headers):
        return ""
    if not reading.wanted().lays_over:
        if not _alpha_is_hole(reading, headers):
            return "; transparency is a band like the others"
        return "; where the transparency is 0 there is no data" * reading.holes
    if reading.background is not None:
        return (
            f"; transparent pixels are laid over data.background {list(reading.background)} and "
            "count as content"
        )
    if reading.holes:
        return (
            "; fully transparent pixels are no data, others are laid over black (give "
            "data.background, such as [1, 1, 1], to have all of them as content)"
        )
    return "; transparent pixels are laid over black and count as content (data.holes false)"


def _values(reading: Reading, headers: Sequence[Description]) -> str:
    if reading.value_range is not None:
        black, white = reading.value_range
        return f"{black:g} is black and {white:g} white (data.value_range), others are cut off"
    ranges: dict[str, None] = {}
    for about in headers:
        kind = "a float" if about.dtype.kind == "f" else f"{about.bits} bit"
        if about.black is None or about.white is None:
            ranges[f"no range of {about.dtype}, which needs data.value_range"] = None
        else:
            own = " (the file's window)" if about.clips else ""
            ranges[f"{about.black:g} is black and {about.white:g} white of {kind}{own}"] = None
    if not ranges:
        return "black and white by the type of each file"
    shown = [*ranges][:MOST_RANGES]
    more = ", and others by their files" if len(ranges) > MOST_RANGES else ""
    return ", ".join(shown) + more + " (by type and header)"


def _alpha_is_hole(reading: Reading, headers: Sequence[Description]) -> bool:
    """Whether pixels whose transparency is 0 are no data, in these files or others beside them."""
    wanted = reading.wanted()
    if wanted.lays_over:
        return reading.background is None
    return any(wanted.clear_is_hole(about.alpha) for about in headers if about.alpha is not None)


def _holes(reading: Reading, headers: Sequence[Description]) -> str:
    marks = []
    if reading.holes:
        is_clear = " or an alpha of 0" if _alpha_is_hole(reading, headers) else ""
        marks.append(f"files say so (nodata, a mask, NaN{is_clear})")
    if reading.invalid is not None:
        marks.append(f"all bands are {reading.invalid} (data.invalid)")
    if reading.valid_mask is not None:
        marks.append(f"the mask {reading.valid_mask} beside is 0")
    if not marks:
        return "every pixel counts (data.holes false)"
    return "pixels are no data where " + " or where ".join(marks)
