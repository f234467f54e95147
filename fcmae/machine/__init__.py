"""What this computer can do: cores, memory, what a run takes, benchmarks."""
