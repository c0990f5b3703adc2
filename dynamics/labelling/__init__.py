"""Labelling: action sentences for frame pairs, their confidence, and which of them are trusted."""
