"""Benchmarks: time and memory of every backend, against the dense model and a ViT-MAE."""

from fcmae.machine.bench.measuring import Measurement, measure
from fcmae.settings.bench import BenchSettings

__all__ = ["BenchSettings", "Measurement", "measure"]
