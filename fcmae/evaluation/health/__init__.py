"""Whether a pretraining is well, without labels: measured on images held out of the training."""

from fcmae.data.splits import hold_out
from fcmae.evaluation.health.check import HealthCheck
from fcmae.evaluation.health.panel import draw_health
from fcmae.evaluation.health.verdict import verdict

__all__ = ["HealthCheck", "draw_health", "hold_out", "verdict"]
