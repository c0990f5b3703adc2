"""Labelling: action sentences for frame pairs, their confidence, and the filter."""
