"""What `fcmae plan --for HARDWARE` asks for beside the settings of a pretraining."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fcmae.errors import ConfigError


@dataclass(frozen=True)
class EstimateSettings:
    """A run on hardware that is not here.

    Attributes:
        hardware: name of the accelerator.
        gpus: how many of it.
        images: of the data set.
        epochs: passes over them.
    """

    hardware: str
    gpus: int
    images: int
    epochs: float

    @classmethod
    def of_words(cls, words: Mapping[str, str]) -> EstimateSettings:
        """Read the options of a command line; one GPU where nothing is said.

        Raises:
            ConfigError: an option is missing, or is no such number.
        """
        if "images" not in words or "epochs" not in words:
            raise ConfigError(
                "fcmae plan --for: say how long the run is, such as --images 1300000 --epochs 800."
            )
        gpus, images = (_whole(name, words.get(name, "1")) for name in ("gpus", "images"))
        try:
            epochs = float(words["epochs"])
        except ValueError:
            epochs = math.nan
        if not 0 < epochs < math.inf:
            raise ConfigError(f"--epochs: got {words['epochs']!r}, expected a number above 0.")
        return cls(words["for"], gpus, images, epochs)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--{name}: got {text!r}, expected a whole number, 1 or more.")
    return int(text)
