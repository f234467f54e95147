"""The loop that every training shares: optimisation, schedule, processes, signals, saving."""
