"""The append-only store of pseudo-labels: what was labelled, what was kept, and from what."""
