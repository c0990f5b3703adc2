"""Frames to image codes and back, one module per kind of tokenizer."""
