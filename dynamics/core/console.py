"""Progress on the console: a bar on a terminal, plain lines anywhere else."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 5.0
_LOG_COLUMNS = 160


class ProgressView:
    """Callable as ``view(done, total, what)``; a context manager that clears the bar."""

    def __init__(self, console: Console | None = None) -> None:
        # In a log file the closing table must not be squeezed into 80 columns.
        width = None if sys.stdout.isatty() else _LOG_COLUMNS
        self.console = console or Console(width=width, soft_wrap=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._what = ""
        self._bar = self._bars.add_task("", visible=False)
        self._amount = ""
        self._started = self._last_line = 0.0
        self._closed = threading.Event()

    def __enter__(self) -> "ProgressView":
        if self.console.is_terminal:
            self._bars.start()
        else:
            threading.Thread(target=self._keep_alive, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        self._bars.stop()

    def _keep_alive(self) -> None:
        """Repeat the last state while a stage is silent, e.g. while Ray starts its workers."""
        while not self._closed.wait(1.0):
            if self._what and time.monotonic() - self._last_line >= _LINE_EVERY_S:
                self._state_line()

    def clear(self) -> None:
        """Hide the bar, and stop repeating its state."""
        self._what = ""
        self._bars.update(self._bar, visible=False)

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, markup=False)

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that ``done`` of ``total`` (0 = unknown) of ``what`` are finished."""
        if what != self._what:
            self._what, self._started, self._last_line = what, time.monotonic(), 0.0
            self._bars.reset(self._bar, description=what, visible=True)
        self._amount = f" {done}/{total}" if total else ""
        if self.console.is_terminal:
            self._bars.update(self._bar, completed=done, total=total or None)
        elif time.monotonic() - self._last_line >= _LINE_EVERY_S or done >= total > 0:
            self._state_line()

    def _state_line(self) -> None:
        self._last_line = time.monotonic()
        self.line(f"{self._what}{self._amount} ({self._last_line - self._started:.0f} s)")
