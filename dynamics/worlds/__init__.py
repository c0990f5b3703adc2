"""Worlds that others wrote: Gymnasium environments, filmed with a sentence for every action."""
