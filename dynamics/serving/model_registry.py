"""Registry of a run's promoted rounds, the last two asked of which stay in memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.records import ModelRef, RoundReport
from dynamics.inference.load import check_bytes
from dynamics.serving.errors import NotReadyError
from dynamics.storage.run_folder import REPORT, RunFolder

Loaded = TypeVar("Loaded")

IN_MEMORY = 2
"""Number of rounds in memory: the promoted one, and the last other one that was asked."""


def promoted_rounds(folder: RunFolder) -> dict[int, RoundReport]:
    """Reports of the rounds that may be served, by round, the oldest first."""
    numbers = sorted(
        int(path.parent.name.removeprefix("round-"))
        for path in folder.root.glob(f"rounds/round-*/{REPORT}")
    )
    reports = {number: folder.report(number) for number in numbers}
    return {
        number: report
        for number, report in reports.items()
        if report is not None and report.promoted
    }


class ModelRegistry(Generic[Loaded]):
    """Promoted rounds, loaded on first use; the promoted one and one more stay in memory.

    Two callers must not load at the same time; everything else may be called from any thread.
    """

    def __init__(
        self, cfg: LoopConfig, folder: RunFolder, load: Callable[[int, ModelRef], Loaded]
    ) -> None:
        self._cfg = cfg
        self.folder = folder
        self._load = load
        self._loaded: OrderedDict[int, Loaded] = OrderedDict()
        self._lock = threading.Lock()  # guards _loaded; never held while loading
        self.promoted: int | None = None
        """Round of requests that name none; None before the first promotion."""

    def known(self) -> dict[int, RoundReport]:
        """Rounds that can be asked."""
        return promoted_rounds(self.folder)

    def cached(self, round_id: int | None) -> Loaded | None:
        """The round (none = the promoted one) when it is in memory."""
        number = self.promoted if round_id is None else round_id
        with self._lock:
            if number is None or number not in self._loaded:
                return None
            self._loaded.move_to_end(number)
            return self._loaded[number]

    def get(self, round_id: int | None) -> Loaded:
        """The round, loaded when it is not in memory.

        Raises:
            NotReadyError: no round is named, and none has been promoted yet.
            UserError: no such round is promoted, or its checkpoint is bad.
        """
        if (found := self.cached(round_id)) is not None:
            return found
        number = self.promoted if round_id is None else round_id
        if number is None:
            raise NotReadyError("no round answers yet; ask again later")
        reports = self.known()
        if number not in reports:
            known = ", ".join(map(str, reports)) or "none"
            raise UserError(f"round {number} is not served; rounds: {known}")
        models = self.folder.models(reports[number], self._cfg.base_path())
        check_bytes(models)
        loaded = self._load(number, models)
        with self._lock:
            self._loaded[number] = loaded
            self._evict(keep=number)
        return loaded

    def promote(self, round_id: int) -> None:
        """Make a loaded round the one that answers requests that name none."""
        with self._lock:
            self.promoted = round_id
            self._evict(keep=round_id)

    def drop(self, round_id: int) -> None:
        """Unload a bad round, unless it is the promoted one."""
        with self._lock:
            if round_id != self.promoted:
                self._loaded.pop(round_id, None)

    def _evict(self, keep: int) -> None:
        others = [number for number in self._loaded if number not in (keep, self.promoted)]
        while len(self._loaded) > IN_MEMORY and others:
            del self._loaded[others.pop(0)]
