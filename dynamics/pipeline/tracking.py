"""Trackers: where finished rounds are written down for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from dynamics.core.records import (
    RoundReport,
)


class Tracker(Protocol):
    """Where finished rounds are written down for people, e.g. MLflow."""

    def log_round(self, report: RoundReport) -> None:
        """Write a finished round; writing it again changes nothing."""

    def log_run(self, reports: Sequence[RoundReport], files: Sequence[Path]) -> None:
        """Write what is missing of the rounds, and the files of the whole run."""


class NoTracker:
    """Writes nothing."""

    def log_round(self, report: RoundReport) -> None:
        """Nothing to do."""

    def log_run(self, reports: Sequence[RoundReport], files: Sequence[Path]) -> None:
        """Nothing to do."""
