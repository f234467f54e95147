"""Which start is the better one: the same fine-tuning and the same probes from each of them."""
