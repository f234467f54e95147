"""FCMAE: masking, sparse encoder, decoder and loss, put together."""

from fcmae.model.autoencoder import FCMAE, FCMAEOutput

__all__ = ["FCMAE", "FCMAEOutput"]
