"""Segmentation: a class for every pixel, from pairs of images and masks."""
