"""Progress on the console: a bar on a terminal, lines for people or programs anywhere else."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dynamics.core.progress import NO_DETAIL, Detail, Pace, duration

_LINE_EVERY_S = 5.0
_LINE_AFTER_S = 60.0
_LINE_SHARE = 0.01
_LOG_COLUMNS = 160
_LOSSES_FROM_COLUMNS = 80


class ProgressView:
    """A `dynamics.core.progress.Progress`; a context manager that clears the bar.

    Where stdout is no terminal, a stage gives a line when it begins and ends, and between these one
    when it advanced by 1 % or a minute has passed, at least 5 s after the last one. Nothing is
    printed while nothing changes.

    Args:
        console: by default stdout.
        as_json: print every line as a JSON object.
    """

    def __init__(self, console: Console | None = None, *, as_json: bool = False) -> None:
        # In a log file the closing table must not be squeezed into 80 columns.
        width = None if sys.stdout.isatty() else _LOG_COLUMNS
        self.console = console or Console(width=width, soft_wrap=True, highlight=False)
        self.as_json = as_json
        self._has_bar = self.console.is_terminal and not as_json
        self._has_room = self.console.width >= _LOSSES_FROM_COLUMNS
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(40, max(3, self.console.width - 77))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            console=self.console,
            transient=True,
        )
        self._bar = self._bars.add_task("", visible=False, pace="")
        self._pace = Pace()
        self._said: tuple[int, str] = (0, "")
        self._said_at = 0.0

    def __enter__(self) -> "ProgressView":
        if self._has_bar:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._has_bar:  # rich ends even a bar that was never started, with an empty line
            self._bars.stop()

    def clear(self) -> None:
        """Hide the bar."""
        self._bars.update(self._bar, visible=False)

    def line(self, text: str, level: str = "info", **fields: Any) -> None:
        """Print a line that stays; ``fields`` are for programs."""
        if self.as_json:
            text = json_line(level, text, **fields)
        self.console.print(text, markup=False, emoji=False)

    def __call__(self, done: int, total: int, what: str, detail: Detail = NO_DETAIL) -> None:
        """Show a stage's progress, when it is time for that."""
        begins = self._pace.advance(done, total, what)
        if self._has_bar:
            if begins:
                self._bars.reset(self._bar)
            shown = f"{what} ({detail.note})" if detail.note else what
            self._bars.update(
                self._bar,
                description=shown,
                completed=done,
                total=total or None,
                visible=True,
                pace=", ".join(self._pace_parts(detail if self._has_room else NO_DETAIL)),
            )
        elif begins or self._is_due(detail.note):
            self._state_line(detail)

    def _is_due(self, note: str) -> bool:
        done, total = self._pace.done, self._pace.total
        if (done, note) == self._said:
            return False
        if done >= total > 0 or note != self._said[1]:
            return True
        passed = time.monotonic() - self._said_at
        step = abs(done - self._said[0]) >= _LINE_SHARE * total > 0
        return passed >= _LINE_AFTER_S or (step and passed >= _LINE_EVERY_S)

    def _state_line(self, detail: Detail) -> None:
        pace = self._pace
        self._said, self._said_at = (pace.done, detail.note), time.monotonic()
        if self.as_json:
            self.line(
                pace.what,
                done=pace.done,
                total=pace.total,
                per_s=round(pace.per_s, 3),
                eta_s=None if pace.eta_s is None else round(pace.eta_s),
                **asdict(detail),
            )
            return
        parts = [f"{datetime.now():%Y-%m-%d %H:%M:%S} {pace.what}"]
        if pace.total:
            parts.append(f"{pace.done:,} of {pace.total:,}")
        parts += self._pace_parts(detail)
        self.line("; ".join(filter(None, [", ".join(parts), detail.note])))

    def _pace_parts(self, detail: Detail) -> Iterator[str]:
        """Speed, time left, or taken when all is done, and losses."""
        pace = self._pace
        if pace.done >= pace.total > 0:
            yield f"in {duration(pace.seconds)}"
        elif pace.eta_s is not None:
            yield f"{pace.per_s:.3g}/s"
            yield f"{duration(pace.eta_s)} left"
        if detail.losses:
            names = {"idm": "IDM", "fdp": "FDP"}
            losses = (f"{names.get(of, of)} {loss:.2g}" for of, loss in detail.losses.items())
            yield f"loss {' '.join(losses)}"


def json_line(level: str, message: str, **fields: Any) -> str:
    """A line of a log as a JSON object: ``time`` (UTC), ``level``, ``message`` and the fields."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "message": message, **fields})


def print_whole(console: Console, tables: RenderableType) -> None:
    """Print tables whose words and figures stay whole, where need be wider than the terminal."""
    least = console.measure(tables, options=console.options.update(max_width=1000)).minimum
    width = max(least, console.width)
    wide = Console(file=console.file, width=width, soft_wrap=True, highlight=False)
    wide.print(tables)
