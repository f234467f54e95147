"""What a pretraining will take on this machine, measured before it is started."""

from fcmae.plan.planning import make_plan
from fcmae.plan.report import report

__all__ = ["make_plan", "report"]
