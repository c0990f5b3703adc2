"""Trackers write down rounds for people: when they begin, when they are done, all together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dynamics.core.progress import NO_DETAIL, Detail, Progress
from dynamics.core.records import RoundReport


class Tracker(Protocol):
    """Writes down rounds for people, e.g. in MLflow or on the report page."""

    def begin_round(self, round_id: int) -> None:
        """Take note that work on a round begins, or goes on after a command that was killed."""

    def log_round(self, report: RoundReport) -> None:
        """Write a finished round; writing it again changes nothing."""

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Write the rounds that are missing, and the results of the whole run."""


@dataclass(frozen=True, slots=True)
class Trackers:
    """Several trackers as one, told in order: a later one finds what an earlier one wrote."""

    trackers: Sequence[Tracker] = ()

    def begin_round(self, round_id: int) -> None:
        """Tell each that work on a round begins."""
        for tracker in self.trackers:
            tracker.begin_round(round_id)

    def log_round(self, report: RoundReport) -> None:
        """Tell each of a finished round."""
        for tracker in self.trackers:
            tracker.log_round(report)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Tell each that all rounds are finished."""
        for tracker in self.trackers:
            tracker.log_run(reports)


@dataclass(frozen=True, slots=True)
class ToldToAll:
    """Several callbacks of progress as one."""

    callbacks: Sequence[Progress]

    def __call__(self, done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
        """Call each."""
        for callback in self.callbacks:
            callback(done, total, what, detail)
