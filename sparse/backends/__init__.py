"""The interchangeable ways to compute the encoder at visible patches: one contract."""
