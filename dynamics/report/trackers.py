"""Sample grid, report page and console line as trackers (`dynamics.pipeline.tracking.Tracker`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dynamics.core.console import ProgressView
from dynamics.core.records import TRANSITION_SCHEMA, RoundReport
from dynamics.evaluation.heldout import results_schema
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.report.grid import write_grid
from dynamics.report.page import write_page
from dynamics.report.table import round_line
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import read_table


@dataclass(frozen=True, slots=True)
class GridTracker:
    """Writes ``grid.png`` of every round; ``images`` decodes its frames."""

    folder: RunFolder
    images: ImageTokenizer

    def begin_round(self, round_id: int) -> None:
        """Nothing to do: there is no sample yet."""

    def log_round(self, report: RoundReport) -> None:
        """Draw the round's sample frames."""
        cfg = self.folder.config()
        items = read_table(
            self.folder.results(report.round_id), results_schema(cfg.evaluate.best_of)
        )
        heldout = read_table(self.folder.heldout, TRANSITION_SCHEMA)
        write_grid(self.folder.grid(report.round_id), items, heldout, self.images)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Draw the rounds that have no grid because the command was killed."""
        for report in reports:
            if not self.folder.grid(report.round_id).exists():
                self.log_round(report)


@dataclass(frozen=True, slots=True)
class PageTracker:
    """Writes ``report.html``, which compares the rounds; ``images`` decodes its frames."""

    folder: RunFolder
    images: ImageTokenizer

    def begin_round(self, round_id: int) -> None:
        """Nothing to do: the page is of finished rounds."""

    def log_round(self, report: RoundReport) -> None:
        """Write the page of the rounds so far."""
        write_page(self.folder, self.images)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Write the page of all rounds."""
        write_page(self.folder, self.images)


@dataclass(frozen=True, slots=True)
class LineTracker:
    """Prints a line for every round that is finished while this command runs."""

    folder: RunFolder
    view: ProgressView
    told: set[int] = field(default_factory=set)

    def begin_round(self, round_id: int) -> None:
        """Nothing to do: the progress says so."""

    def log_round(self, report: RoundReport) -> None:
        """Print the round's line, for programs with the whole report."""
        number = report.round_id
        before = self.folder.report(number - 1) if number else None
        seconds = sum(self.folder.timings(number).values())
        fields = {"seconds": seconds, **report.to_json()} if self.view.as_json else {}
        self.view.line(round_line(report, before, seconds), **fields)
        self.told.add(number)

    def log_run(self, reports: Sequence[RoundReport]) -> None:
        """Print the rounds that an earlier command finished, for programs.

        People read them in the closing table.
        """
        if self.view.as_json:
            for report in reports:
                if report.round_id not in self.told:
                    self.log_round(report)
