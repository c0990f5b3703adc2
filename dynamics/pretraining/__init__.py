"""Bases that are trained here: a small Chameleon network that learns to look at frames."""
