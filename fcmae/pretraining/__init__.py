"""The task of FCMAE: set-up, training step, monitoring."""
