"""The tasks with labels: a classifier fine-tuned, evaluated, exported."""
