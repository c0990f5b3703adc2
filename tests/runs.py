"""What tests of whole runs share."""

from dataclasses import dataclass
from pathlib import Path

from dynamics.core.config import LoopConfig
from dynamics.core.progress import Progress, silent
from dynamics.core.records import RoundReport
from dynamics.loop import run_rounds
from dynamics.pipeline.executor import Executor
from dynamics.pipeline.stages import Stages
from dynamics.pipeline.tracking import Tracker, Trackers
from dynamics.report.trackers import GridTracker, PageTracker
from dynamics.storage.run_folder import RunFolder


class Stop(BaseException):
    """Ends a loop as abruptly as a kill does: nobody catches it."""


class StopAt:
    """A progress callback that stops the loop at its n-th call (never, when n is negative)."""

    def __init__(self, call: int = -1) -> None:
        self.calls_left = call
        self.seen: list[str] = []

    def __call__(self, done: int, total: int, what: str) -> None:
        self.seen.append(what)
        self.calls_left -= 1
        if self.calls_left == 0:
            raise Stop


def results(folder: Path) -> dict[str, bytes]:
    """Every file of a run that must not depend on where, how and how often it ran."""
    found = [
        *folder.glob("rounds/*/report.json"),
        *folder.glob("rounds/*/*.parquet"),
        *folder.glob("ledger/rounds/*.json"),
        *folder.glob("ledger/shards/*"),
        *folder.glob("data/*.parquet"),
        *folder.rglob("*.parts/manifest.json"),
        *folder.rglob("*.parts/rows/*"),
        *folder.glob("data/codes/*"),
        *folder.glob("data/ingest.json"),
        *folder.glob("data/leakage.json"),
    ]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def run_local(
    cfg: LoopConfig,
    folder: Path,
    tracker: Tracker | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> list[RoundReport]:
    """The loop in this process, in a run folder that it holds."""
    run = RunFolder(folder)
    trackers = Trackers([GridTracker(run), PageTracker(run), *([tracker] if tracker else [])])
    stages = Stages(cfg, folder, executor=executor, trackers=trackers, progress=progress)
    with run.claimed(cfg):
        return run_rounds(cfg, stages)


@dataclass(frozen=True)
class LocalRun:
    """A finished run in one process, shared by all tests, which only read it."""

    folder: Path
    num_progress_calls: int


def descendants(pid: int) -> set[int]:
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}
