"""Transitions of the tabletop that the base was shown while it was pretrained."""

from pathlib import Path

import numpy as np

SEEN_FILE = "pretraining_transitions.npy"


def seen_transitions(base: Path) -> frozenset[int]:
    """Every `transition_key` of a checkpoint's pretraining; empty when it saw no tabletop."""
    path = base / SEEN_FILE
    return frozenset(np.load(path, allow_pickle=False).tolist()) if path.is_file() else frozenset()
