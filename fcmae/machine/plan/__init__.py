"""What a pretraining will take on this machine, measured before it is started."""

from fcmae.machine.plan.advice import describe
from fcmae.machine.plan.planning import make_plan

__all__ = ["describe", "make_plan"]
