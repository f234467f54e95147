"""How the values of files become the channels of a model: one object, which travels everywhere.

Pretraining, its caches, scores and exports, fine-tuning, `embed` and `probe` read by the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fcmae.data.parts import Choose
from fcmae.data.readers import Wanted
from fcmae.settings.finetune import StartedImagesConfig
from fcmae.settings.pretrain import DataConfig


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the values of files mean; see `decode` for the rules.

    Attributes:
        in_chans: channels of the images made.
        value_range: (black, white) of the files' own values; None: as type and header say.
        bands: the bands of a file that become the channels, in their order, from 0; None: by
            the rules.
        background: red, green and blue in 0..1 that transparent pixels are laid over, which are
            content then. None: black below what shines through; an alpha of 0 is no data.
        reader: a function of the user's that reads files, MODULE:FUNCTION, or None.
        holes: whether pixels are without data that files themselves say are: nodata and masks of
            TIFFs, NaN, an alpha of 0 without `background`.
        invalid: a value of the files' own that means no data, for all bands or one per band; a
            pixel has none where every band but transparency holds it.
        valid_mask: the file beside a picture whose zeros mark pixels without data: a path from
            the picture's folder with {stem} or {name} in it, those of the picture.
    """

    in_chans: int
    value_range: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    background: tuple[float, float, float] | None = None
    reader: str | None = None
    holes: bool = True
    invalid: float | tuple[float, ...] | None = None
    valid_mask: str | None = None

    @classmethod
    def of_settings(
        cls, data: DataConfig | StartedImagesConfig, known: Mapping[str, Any] | None = None
    ) -> Reading:
        """Return how the settings read; what they leave open is as in `known`.

        Args:
            data: the settings.
            known: what weights say of themselves, by the names of the attributes.
        """
        known = known or {}

        def chosen(name: str) -> Any:
            setting = getattr(data, name)
            value = known.get(name) if setting is None else setting
            return tuple(value) if isinstance(value, list) else value

        return cls(
            in_chans=data.in_chans,
            value_range=chosen("value_range"),
            bands=chosen("bands"),
            background=chosen("background"),
            reader=chosen("reader"),
            holes=data.holes and known.get("holes", True),
            invalid=chosen("invalid"),
            valid_mask=data.valid_mask,  # a matter of the folder, not of the values
        )

    @property
    def needs_exact_pixels(self) -> bool:
        """Whether pixels without data are found at the picture's full size and own bands only."""
        return self.invalid is not None or self.valid_mask is not None

    def wanted(self, choose: Choose | None = None) -> Wanted:
        """Return what is asked of a reader for the part that `choose` wants."""
        background = self.background
        if background is not None and self.value_range is not None:  # as 8 bits have it
            black, white = self.value_range
            shades = ((black + share * (white - black)) / 255 for share in background)
            red, green, blue = (min(1.0, max(0.0, shade)) for shade in shades)
            background = red, green, blue
        return Wanted(
            in_chans=self.in_chans,
            bands=self.bands,
            background=background,
            choose=choose,
            is_exact=self.needs_exact_pixels,
        )
