"""Progress of a stage: the callback that every long stage calls."""

from collections.abc import Callable


def silent(done: int, total: int, what: str) -> None:
    """The progress callback that shows nothing."""


Progress = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)``; a total of 0 means "unknown"."""
