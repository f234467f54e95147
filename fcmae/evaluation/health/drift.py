"""How far the features of every stage have moved from those of the weights that a run started from.

Measured at the same sites of the same held-out images every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from timm.models.convnext import ConvNeXt
from torch import Tensor

from fcmae.data import sample_seed
from fcmae.errors import DataError
from fcmae.evaluation.features import evaluating
from fcmae.runs.durable import write_bytes

NAME = "health/cka_start_stage_{}"
MOST_SITES = 1024  # of each stage, of all images together
FEWEST_SITES = 4  # the estimate needs more than three
CHUNK_IMAGES = 8  # at a time: bounds memory, changes no number


def debiased_cka(first: Tensor, second: Tensor) -> float:
    """Return how alike two sets of features of the same sites are: 1 the same, near 0 unrelated.

    Turning, shifting and scaling all features together changes nothing. NaN where features are not
    finite, all the same, or fewer than four.

    Source: linear CKA (Kornblith et al. 2019, arXiv 1905.00414) by the unbiased estimate of HSIC
    (Song et al. 2012), without which features of more channels than sites look alike by chance.

    Args:
        first, second: [N, D] and [N, E].
    """
    if len(first) < FEWEST_SITES or not (first.isfinite().all() and second.isfinite().all()):
        return math.nan
    grams = []
    for features in (first, second):
        centred = features.double() - features.double().mean(dim=0)
        grams.append((centred @ centred.T).fill_diagonal_(0))  # [N, N]
    joint, own, other = (_hsic(*pair) for pair in (grams, grams[:1] * 2, grams[1:] * 2))
    return joint / math.sqrt(own * other) if own > 0 and other > 0 else math.nan


def _hsic(first: Tensor, second: Tensor) -> float:
    """Return the unbiased estimate, up to a factor, of Gram matrices with a diagonal of 0."""
    count = len(first)
    product = float((first * second).sum())
    sums = float(first.sum() * second.sum()) / ((count - 1) * (count - 2))
    return product + sums - 2 * float(first.sum(dim=0) @ second.sum(dim=0)) / (count - 2)


class Drift:
    """Compares an encoder with its start.

    Args:
        images: [N, C, H, W], normalised, on the CPU.
        seed: decides the sites.
        valid: bool [N, 1, H, W], False where an image has no data; None where all of them have.
        min_valid: share of a cell's pixels that must have data for the site to count.
        file: where the features of the start are kept, for a run that goes on later.
    """

    def __init__(
        self, images: Tensor, seed: int, valid: Tensor | None, min_valid: float, file: Path
    ) -> None:
        self._images, self._seed, self._file = images, seed, file
        self._valid, self._min_valid = valid, min_valid
        self._start: dict[str, Tensor] | None = None

    def remember(self, encoder: ConvNeXt) -> None:
        """Keep the features of the encoder as those of the start; raises OSError."""
        self._start = self._features(encoder)
        write_bytes(self._file, to_bytes(self._start))

    def recall(self) -> None:
        """Take the features of the start from the file.

        Raises:
            DataError: they are not there, or damaged.
        """
        try:
            self._start = load_file(self._file)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self._file} cannot be read ({error}); how far features drift from the start is "
                "not measured any more."
            ) from error

    def measure(self, encoder: ConvNeXt) -> dict[str, float]:
        """Return the likeness to the start by the name it is logged under; {} without a start."""
        if self._start is None:
            return {}
        now, start = self._features(encoder), self._start
        found = {name: debiased_cka(start[name], now[name]) for name in now if name in start}
        return {name: round(value, 6) for name, value in found.items()}

    @torch.no_grad()
    def _features(self, encoder: ConvNeXt) -> dict[str, Tensor]:
        """Return features of the chosen sites, [sites, channels] by the name of the stage."""
        parts: dict[str, list[Tensor]] = {}
        with evaluating(encoder):
            for chunk in range(0, len(self._images), CHUNK_IMAGES):
                for stage, maps in enumerate(self._maps(encoder, chunk)):
                    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)  # [n * h * w, C]
                    chosen = self._sites(stage, *maps.shape[2:])
                    first = chunk * rows.shape[0] // len(maps)
                    here = chosen[(chosen >= first) & (chosen < first + len(rows))] - first
                    found = rows[here.to(rows.device)].float().cpu()
                    parts.setdefault(NAME.format(stage), []).append(found)
        return {name: torch.cat(found) for name, found in parts.items()}

    def _maps(self, encoder: ConvNeXt, chunk: int) -> Iterator[Tensor]:
        """Yield the feature map of each stage for some images, [n, C, h, w]."""
        device = next(encoder.parameters()).device
        maps = encoder.stem(self._images[chunk : chunk + CHUNK_IMAGES].to(device))
        stages: Iterable[torch.nn.Module] = encoder.stages
        for stage in stages:
            maps = stage(maps)
            yield maps

    def _sites(self, stage: int, height: int, width: int) -> Tensor:
        """Return the sites of a stage that count, numbers in ascending order."""
        if self._valid is None:
            usable = torch.arange(len(self._images) * height * width)
        else:
            shares = F.adaptive_avg_pool2d(self._valid.float(), (height, width))
            usable = (shares.flatten() >= self._min_valid).nonzero().flatten()
        rng = torch.Generator().manual_seed(sample_seed(self._seed, "sites", stage))
        order = torch.randperm(len(usable), generator=rng)[:MOST_SITES]
        return usable[order].sort().values
