"""Whether a pretraining is well, without labels: measured on images held out of the training."""

from fcmae.evaluation.health.check import HealthCheck
from fcmae.evaluation.health.drift import Drift
from fcmae.evaluation.health.panel import draw_health
from fcmae.evaluation.health.verdict import START_LOSS, first_epoch, verdict

__all__ = [
    "START_LOSS",
    "Drift",
    "HealthCheck",
    "draw_health",
    "first_epoch",
    "verdict",
]
