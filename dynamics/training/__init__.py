"""Training: the training_set set and the fits of the two adapters."""
