"""What tests of whole runs share."""

import fnmatch
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.records import RoundReport
from dynamics.loop import run_rounds
from dynamics.pipeline.executor import Executor, LocalExecutor
from dynamics.pipeline.stages import Stages
from dynamics.pipeline.tracking import Tracker, Trackers
from dynamics.report.trackers import GridTracker, PageTracker
from dynamics.storage.files import list_files
from dynamics.storage.run_folder import RunFolder


class Stop(BaseException):
    """Ends a loop as abruptly as a kill does: nobody catches it."""


class StopAt:
    """A progress callback that stops the loop at its n-th call (never, when n is negative)."""

    def __init__(self, call: int = -1) -> None:
        self.calls_left = call
        self.seen: list[str] = []

    def __call__(self, done: int, total: int, what: str, *_: object) -> None:
        self.seen.append(what)
        self.calls_left -= 1
        if self.calls_left == 0:
            raise Stop


_RESULTS = (
    "rounds/*/report.json",
    "rounds/*/*.parquet",
    "ledger/rounds/*.json",
    "ledger/shards/*",
    "data/*.parquet",
    "*.parts/manifest.json",
    "*.parts/rows/*",
    "data/codes/*",
    "data/ingest.json",
    "data/leakage.json",
)


def results(folder: Place) -> dict[str, bytes]:
    """Every file of a run that must not depend on where, how and how often it ran."""
    files = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    wanted = {name for pattern in _RESULTS for name in fnmatch.filter(files, pattern)}
    return {name: files[name].read_bytes() for name in wanted}


def kept_results(folder: Place) -> dict[str, bytes]:
    """Results without the codes of units that no table took: an ingest on Ray makes some more.

    A manifest holds the digest of all codes of its table.
    """
    found = results(folder)
    return {name: found[name] for name in found if not name.startswith("data/codes/")}


def run_local(
    cfg: LoopConfig,
    folder: Place,
    tracker: Tracker | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> list[RoundReport]:
    """The loop in this process, in a run folder that it holds."""
    run = RunFolder(folder)
    executor = executor or LocalExecutor(cfg, run)
    grid, page = (one(run, executor.images) for one in (GridTracker, PageTracker))
    trackers = Trackers([grid, page, *([tracker] if tracker else [])])
    stages = Stages(cfg, folder, executor=executor, trackers=trackers, progress=progress)
    with run.claimed(cfg):
        return run_rounds(cfg, stages)


@dataclass(frozen=True)
class LocalRun:
    """A finished run in one process, shared by all tests, which only read it."""

    folder: Path
    num_progress_calls: int


class Driver:
    """The command with a run of tests/test-3x3.yaml, on a cluster, in a process of its own."""

    def __init__(self, address: str, run_dir: Path, overrides: Sequence[str], *flags: str) -> None:
        self._log = run_dir.with_name(f"{run_dir.name}.log")
        command = [sys.executable, "ray_jobs/bootstrap.py", "--config", "tests/test-3x3.yaml"]
        with self._log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *flags, "--run-dir", str(run_dir), *overrides],
                env={**os.environ, "RAY_ADDRESS": address},
                cwd=REPOSITORY_ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        """All that it has written so far."""
        return self._log.read_text()

    def wait_until(self, true: Callable[[], object], seconds: float = 300) -> None:
        """Wait while the driver runs."""
        end = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < end, self.said
            time.sleep(0.02)


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


def runs_below(pid: int, title: bytes) -> bool:
    """True when a process of this title descends from another one."""
    for child in descendants(pid):
        try:
            if title in Path(f"/proc/{child}/cmdline").read_bytes():
                return True
        except OSError:  # it has ended
            pass
    return False
