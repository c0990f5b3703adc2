"""Training: the grown set and the fits of the two adapters."""
