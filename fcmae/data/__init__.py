"""Images in: finding, ordering, decoding, augmenting and loading them."""

from fcmae.data.augmentation import (
    EvaluationTransform,
    Normalisation,
    PretrainAugmentation,
    default_mean_std,
)
from fcmae.data.cache import PixelCache
from fcmae.data.dataset import EvaluationDataset, PretrainDataset
from fcmae.data.decoding import (
    Decoded,
    UndecodableImageError,
    decode,
    decode_all,
    decode_image,
    to_float,
)
from fcmae.data.files import ImageList, find_images
from fcmae.data.loading import Loader, collate, make_loader
from fcmae.data.order import MicroBatches, SampleStream, in_order
from fcmae.data.reading import Reading
from fcmae.data.sources import open_images
from fcmae.data.splits import open_train_and_validation
from fcmae.randomness import sample_seed, seeded

__all__ = [
    "Decoded",
    "EvaluationDataset",
    "EvaluationTransform",
    "ImageList",
    "Loader",
    "MicroBatches",
    "Normalisation",
    "PixelCache",
    "PretrainAugmentation",
    "PretrainDataset",
    "Reading",
    "SampleStream",
    "UndecodableImageError",
    "collate",
    "decode",
    "decode_all",
    "decode_image",
    "default_mean_std",
    "find_images",
    "in_order",
    "make_loader",
    "open_images",
    "open_train_and_validation",
    "sample_seed",
    "seeded",
    "to_float",
]
