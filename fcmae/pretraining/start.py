"""The weights that a pretraining starts from, and what has to be said about them."""

from typing import Any, NamedTuple

from fcmae.data.augmentation import mean_and_std
from fcmae.model.autoencoder import FCMAE
from fcmae.settings.pretrain import PretrainConfig
from fcmae.weights.loading import load_encoder
from fcmae.weights.sources import licence_notices, load_decoder, metadata_of

TOLERANCE = 5e-4  # of mean and deviation on the 0..1 scale: less than a step of 8 bits


class Start(NamedTuple):
    """What is told of the weights that a run starts from.

    Attributes:
        told: sentences for the screen.
        origin: where the weights come from and their licence; "" if nobody says.
    """

    told: list[str]
    origin: str


def load_start(model: FCMAE, config: PretrainConfig) -> Start:
    """Load what model.init_from and model.init_decoder_from name into `model`, in place.

    Raises:
        CheckpointError: weights that cannot be had, or do not fit; as `load_encoder`.
    """
    told: list[str] = []
    origins: list[str] = []
    source = config.model.init_from
    if source is not None:
        known = metadata_of(source)
        told += licence_notices(source, known)
        told += load_encoder(model.encoder, source, inflate=config.model.inflate)
        told += _differences(source, known, config)
        origins.append(known.get("origin", ""))
    source = config.model.init_decoder_from
    if source is not None:
        load_decoder(model, source)
        origins.append(metadata_of(source).get("origin", ""))
    return Start(told, "; ".join(dict.fromkeys(filter(None, origins))))


def _differences(source: str, known: dict[str, Any], config: PretrainConfig) -> list[str]:
    """Say where the images that the weights know were normalised in another way."""
    told = []
    ours = dict(zip(("mean", "std"), mean_and_std(config.data), strict=True))
    for name, mine in ours.items():
        theirs = known.get(name)
        if theirs is None or len(theirs) != len(mine):
            continue
        if max(abs(a - b) for a, b in zip(theirs, mine, strict=True)) > TOLERANCE:
            shown = "[" + ",".join(f"{value:.4g}" for value in theirs) + "]"
            told.append(f"{source}: was trained with data.{name} {shown}, which this run has not.")
    theirs = known.get("value_range")
    if theirs is not None and tuple(theirs) != tuple(config.data.value_range or ()):
        told.append(
            f"{source}: was trained with data.value_range {list(theirs)}, which this run has not."
        )
    return told
