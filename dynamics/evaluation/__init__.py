"""Measuring a round on held-out pairs, with intervals, and against controls."""
