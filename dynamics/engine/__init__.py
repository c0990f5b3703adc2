"""Batched decoding of action sentences and image codes."""
