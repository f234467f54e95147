"""Ablations: a grid of pretraining runs with paired seeds, each evaluated in the same way."""
