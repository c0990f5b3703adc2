"""Silence of a library that talks where nobody has asked."""

import os
import warnings


def quiet_transformers() -> None:
    """Before its first import: no bar for every checkpoint, no warning of what it will rename."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
