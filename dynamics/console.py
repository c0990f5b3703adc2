"""What a person sees while the loop runs: a bar on a terminal, plain lines anywhere else."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 5.0


class ProgressView:
    """Callable as ``view(done, total, what)``; a context manager that clears the bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, soft_wrap=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._what = ""
        self._bar = self._bars.add_task("", visible=False)
        self._started = self._last_line = 0.0

    def __enter__(self) -> "ProgressView":
        if self.console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def line(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that ``done`` of ``total`` (0 = unknown) of ``what`` are finished."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._started, self._last_line = what, now, 0.0
            self._bars.reset(self._bar, description=what, visible=True)
        if self.console.is_terminal:
            self._bars.update(self._bar, completed=done, total=total or None)
        elif now - self._last_line >= _LINE_EVERY_S or done >= total > 0:
            self._last_line = now
            amount = f" {done}/{total}" if total else ""
            self.line(f"{what}{amount} ({now - self._started:.0f} s)")
