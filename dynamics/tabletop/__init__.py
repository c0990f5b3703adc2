"""The tabletop: a procedural world whose ground truth measures every claim."""
