"""Trackers write down finished rounds for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamics.core.records import RoundReport


class Tracker(Protocol):
    """Writes down finished rounds for people, e.g. in MLflow or on the report page."""

    def log_round(self, report: RoundReport) -> None:
        """Write a finished round; writing it again changes nothing."""

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Write the rounds that are missing, and the results of the whole run."""


@dataclass(frozen=True, slots=True)
class Trackers:
    """Several trackers as one, told in order: a later one finds what an earlier one wrote."""

    trackers: Sequence[Tracker] = ()

    def log_round(self, report: RoundReport) -> None:
        """Tell each of a finished round."""
        for tracker in self.trackers:
            tracker.log_round(report)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Tell each that all rounds are finished."""
        for tracker in self.trackers:
            tracker.log_run(reports)
