"""Drawing next frames, and choosing among them."""
