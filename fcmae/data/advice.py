"""From what was seen of a set of files to settings that read it right; every choice has a rule."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcmae.data.channels import to_channels
from fcmae.data.decoding import to_float
from fcmae.data.readers import Description, Pixels, UnreadableError
from fcmae.data.reading import Reading
from fcmae.data.survey import Look
from fcmae.model.structure import LARGEST_SIZE_PX, image_size_for, variant_for

PATCH_PX = 32
NEARLY_ALL = 0.95  # of the files, for what is said of all
LEAST_SKIPPED = 0.02  # from here on the limit of a run, 5 %, is raised
WANTED_STEPS = 10_000
LEAST_EPOCHS, MOST_EPOCHS = 100, 3000
LARGEST_BATCH = 256
BATCH_AT_ONCE = 64
TAILS = (0.1, 99.9)  # per cent of the values that become black and white where nothing says so


@dataclass
class Advice:
    """Settings for a set, with the rule that chose each.

    Attributes:
        settings: {section: {name: value}} of a pretraining, without run and data.path.
        rules: {"section.name": why this value}, a sentence each.
        warnings: sentences about what a person must decide.
        unfit: (path, reason) of sampled files that cannot be read with these settings.
    """

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    unfit: list[tuple[str, str]] = field(default_factory=list)

    def choose(self, name: str, value: Any, why: str) -> None:
        """Note the value of section.name and its rule."""
        section, _, leaf = name.partition(".")
        self.settings.setdefault(section, {})[leaf] = value
        self.rules[name] = why


def advise(looks: Sequence[Look], *, cores: int) -> Advice | None:
    """Return settings for pretraining on these files; None when none of them can be used."""
    usable = [look for look in looks if look.about is not None and not look.reason]
    sampled = [look for look in usable if look.pixels is not None]
    if not sampled:
        return None
    advice = Advice()
    in_chans = _choose_channels(usable, sampled, advice)
    _choose_range(usable, sampled, advice)
    _choose_background(sampled, in_chans, advice)
    _choose_statistics(sampled, in_chans, advice)
    _choose_size(usable, advice)
    left_out = len(looks) - len(usable) + len(advice.unfit) * len(usable) // len(sampled)
    if left_out > LEAST_SKIPPED * len(looks):
        share = min(1.0, math.ceil(150 * left_out / len(looks)) / 100)
        why = (
            f"{left_out:,} of {len(looks):,} files cannot be used, as inspected; half as many more"
        )
        advice.choose("data.max_skipped_share", share, why)
    _choose_length(len(usable), cores, advice)
    return advice


def _choose_channels(usable: Sequence[Look], sampled: Sequence[Look], advice: Advice) -> int:
    headers = [look.about for look in usable if look.about is not None]
    counts = Counter(about.bands - (about.alpha is not None) for about in headers)
    bands, most = counts.most_common(1)[0]
    colours = Counter(about.colour for about in headers)
    pictures = colours["grey"] + colours["rgb"] + colours["cmyk"]
    if pictures >= NEARLY_ALL * len(headers) and max(counts) <= 4:
        in_chans, why = 3, "pictures in colour, or some in colour: grey ones are repeated"
        if colours["grey"] >= NEARLY_ALL * len(headers):
            in_chans, why = 1, f"{colours['grey']:,} of {len(headers):,} files are grey"
        elif all(_is_grey(look) for look in sampled):
            in_chans, why = 1, "the bands of every sampled picture are equal: grey stored as colour"
        if colours["rgb"] and bands == 4 and most >= NEARLY_ALL * len(headers):
            in_chans, why = 4, "all four bands: a fourth of these files is no transparency"
    else:
        in_chans, why = bands, f"{most:,} of {len(headers):,} files have so many bands"
    advice.choose("data.in_chans", in_chans, why)
    _choose_bands(headers, in_chans, advice)
    others = sum(count for number, count in counts.items() if number not in (bands, 1, 3))
    if others:
        listed = ", ".join(f"{count:,} with {number}" for number, count in counts.most_common())
        advice.warnings.append(f"files differ in their bands: {listed}; see data.bands")
    return in_chans


def _choose_bands(headers: Sequence[Description], in_chans: int, advice: Advice) -> None:
    """Name the bands of files whose colours are no grey or RGB, which are not taken unasked."""
    strange = [about for about in headers if about.colour == "other"]
    if len(strange) < NEARLY_ALL * len(headers):
        advice.choose("data.bands", None, "by the rules, which a run says at its start")
        return
    what = strange[0].facts.get("photometric", "colours that are no grey or RGB")
    why = f"{len(strange):,} of {len(headers):,} files hold {what}: all bands, as they are"
    advice.choose("data.bands", list(range(in_chans)), why)


def _is_grey(look: Look) -> bool:
    assert look.pixels is not None
    values = look.pixels.values[..., :3]
    return values.shape[2] < 3 or bool((values == values[..., :1]).all())


def _choose_range(usable: Sequence[Look], sampled: Sequence[Look], advice: Advice) -> None:
    types = Counter(str(look.about.dtype) for look in usable if look.about is not None)
    dtype = types.most_common(1)[0][0]
    values = np.concatenate([_known(look).ravel() for look in sampled])
    kind = np.dtype(dtype).kind
    name = "data.value_range"
    if len(types) > 1:
        listed = ", ".join(f"{count:,} {name}" for name, count in types.most_common())
        advice.choose(name, None, f"types differ ({listed}): each fills its own range")
        if kind != "u" or dtype != "uint8":
            advice.warnings.append(
                f"files differ in their types ({listed}): one value_range cannot fit all; inspect "
                "them by themselves, or leave the fewer out with data.exclude"
            )
        return
    low, high = float(values.min()), float(values.max())
    about = sampled[0].about
    assert about is not None
    if dtype in ("uint8", "bool"):
        advice.choose(name, None, "8 bits: 0 is black, 255 is white")
    elif kind == "f" and low >= 0 and high <= 1:
        advice.choose(name, None, "floats in 0..1: 0 is black, 1 is white")
    elif kind == "u" and about.bits > 8:
        bits = max(8, math.ceil(math.log2(high + 1))) if high > 0 else about.bits
        if bits >= about.bits:
            why = f"values up to {high:g} fill the {about.bits} bits that the files state"
            advice.choose(name, None, why)
        else:
            why = f"values up to {high:g} need {bits} of the {about.bits} bits that the files state"
            advice.choose(name, [0.0, float(2**bits - 1)], why)
    elif about.black is not None and about.white is not None and kind != "f":
        advice.choose(name, None, f"the files state {about.black:g} to {about.white:g}")
    else:
        black, white = (float(f"{value:.4g}") for value in np.percentile(values, TAILS))
        if black >= white:
            black, white = low, max(high, low + 1)
        why = (
            f"nothing says what is black and white: the {TAILS[0]} and {TAILS[1]} percentiles of "
            f"values from {low:g} to {high:g}"
        )
        advice.choose(name, [black, white], why)


def _known(look: Look) -> np.ndarray:
    """Return the sampled values that have content and are finite, [n, bands], no transparency."""
    assert look.pixels is not None
    values, valid, about = look.pixels
    bands = [band for band in range(values.shape[2]) if band != about.alpha]
    known = values[..., bands].reshape(-1, len(bands))
    if valid is not None:
        known = known[valid.ravel()]
    if known.dtype.kind == "f":
        known = known[np.isfinite(known).all(axis=1)]
    return known


def _choose_background(sampled: Sequence[Look], in_chans: int, advice: Advice) -> None:
    """Lay drawings of one colour on transparent ground over another: their shape is the content."""
    clear = [look.pixels for look in sampled if look.pixels is not None and _has_clear(look.pixels)]
    shades = [shade for shade in map(_only_shade, clear) if shade is not None]
    if in_chans not in (1, 3) or not clear or len(shades) < NEARLY_ALL * len(clear):
        return
    is_dark = bool(np.median(shades) < 0.5)
    why = (
        f"{len(shades):,} of {len(clear):,} sampled pictures with transparency have one colour "
        f"alone where anything is seen, {'a dark' if is_dark else 'a light'} one"
    )
    advice.choose("data.background", [1.0] * 3 if is_dark else [0.0] * 3, why)


def _has_clear(pixels: Pixels) -> bool:
    alpha = pixels.about.alpha
    return alpha is not None and bool((pixels.values[..., alpha] == 0).any())


def _only_shade(pixels: Pixels) -> float | None:
    """Return the mean of the one colour, 0..1, that is seen; None if there are several or none."""
    values, _, about = pixels
    assert about.alpha is not None
    seen = values[values[..., about.alpha] > 0][:, : about.alpha]
    if not seen.size or (seen != seen[0]).any() or not about.white:
        return None
    return float(seen[0].mean()) / about.white


def _choose_statistics(sampled: Sequence[Look], in_chans: int, advice: Advice) -> None:
    chosen = advice.settings["data"]
    value_range, background = chosen["value_range"], chosen.get("background")
    bands = chosen["bands"]
    reading = Reading(
        in_chans=in_chans,
        bands=None if bands is None else tuple(bands),
        value_range=None if value_range is None else tuple(value_range),
        background=None if background is None else tuple(background),
    )
    total, squares, count = np.zeros(in_chans), np.zeros(in_chans), 0
    num_fit = 0
    for look in sampled:
        assert look.pixels is not None
        try:
            image = to_float(to_channels(look.pixels, reading)).double().numpy()
        except UnreadableError as error:
            advice.unfit.append((look.path, str(error)))
            continue
        is_laid = background is not None and look.pixels.about.alpha is not None
        valid = None if is_laid else look.pixels.valid  # what it is laid over is content
        pixels = image.reshape(in_chans, -1) if valid is None else image[:, valid]
        total += pixels.sum(axis=1)
        squares += (pixels**2).sum(axis=1)
        count += pixels.shape[1]
        num_fit += 1
    if not count:
        advice.warnings.append("none of the sampled files can be read with these settings")
        return
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    why = f"of {count:,} pixels of {num_fit:,} files, on the scale where white is 1"
    advice.choose("data.mean", [round(float(value), 4) for value in mean], why)
    advice.choose("data.std", [max(round(float(value), 4), 0.01) for value in std], why)


def _choose_size(usable: Sequence[Look], advice: Advice) -> None:
    sides = [min(look.about.height, look.about.width) for look in usable if look.about is not None]
    median = float(np.median(sides))
    why = (
        f"half of the pictures have a shorter side of {median:g} px or less; whole patches of "
        f"{PATCH_PX} px, {LARGEST_SIZE_PX} px at most"
    )
    advice.choose("data.image_size", image_size_for(median, PATCH_PX), why)


def _choose_length(num_images: int, cores: int, advice: Advice) -> None:
    why = f"{num_images:,} images: what so many can fill"
    advice.choose("model.name", variant_for(num_images), why)
    kept = max(1, int(0.9 * num_images))  # some are held out
    batch = 2 ** int(math.log2(min(kept, LARGEST_BATCH)))
    at_once = min(batch, BATCH_AT_ONCE)
    why = f"a power of two up to {LARGEST_BATCH} images per step, {BATCH_AT_ONCE} at a time"
    advice.choose("train.batch_size", at_once, why)
    advice.choose("train.accumulate", batch // at_once, why)
    steps_per_epoch = max(1, num_images // batch)
    epochs = min(MOST_EPOCHS, max(LEAST_EPOCHS, -(-WANTED_STEPS // steps_per_epoch)))
    why = (
        f"{WANTED_STEPS:,} steps of {batch} images, {LEAST_EPOCHS} to {MOST_EPOCHS:,} epochs; "
        "then see whether the held-out loss still falls"
    )
    advice.choose("train.epochs", epochs, why)
    workers = max(1, min(cores - 1, 8))
    advice.choose("data.workers", workers, f"one of {cores} cores is left to the training")
