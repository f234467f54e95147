"""FCMAE: masking, sparse encoder, decoder and loss, put together."""
