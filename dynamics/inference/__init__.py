"""Asking the models: decoding, likelihoods, best of N, rollouts."""
