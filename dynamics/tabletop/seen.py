"""Transitions of the tabletop that the base was shown while it was pretrained."""

import numpy as np

from dynamics.core.places import Place
from dynamics.storage.files import local_copy

SEEN_FILE = "pretraining_transitions.npy"


def seen_transitions(base: Place) -> frozenset[int]:
    """Every `transition_key` of a checkpoint's pretraining; empty when it saw no tabletop."""
    path = base / SEEN_FILE
    if not path.is_file():
        return frozenset()
    return frozenset(np.load(local_copy(path), allow_pickle=False).tolist())
