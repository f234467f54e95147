"""What a pretraining will take on this machine, measured before it is started."""

from fcmae.machine.plan.planning import make_plan
from fcmae.machine.plan.report import report

__all__ = ["make_plan", "report"]
