"""Conversion between the layouts that ConvNeXt weights are stored in."""

from fcmae.convert.conversion import convert_state_dict
from fcmae.convert.formats import FORMAT_NAMES

__all__ = ["FORMAT_NAMES", "convert_state_dict"]
