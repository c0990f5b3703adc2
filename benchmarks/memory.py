"""Memory of a process and of the Ray workers below it, over time; CPU time."""

import os
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

EVERY_S = 0.5


@dataclass
class MemoryCurve:
    """Resident megabytes, sampled while a command runs."""

    pid: int
    times: list[float] = field(default_factory=list)
    """Unix seconds."""
    driver: list[int] = field(default_factory=list)
    """Of the process itself."""
    worker: list[int] = field(default_factory=list)
    """Of its largest Ray worker; 0 while there is none."""
    peaks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """The most of every kind of process."""

    def sample(self) -> None:
        """Add a point to the curves."""
        now = {self.pid: "driver"} | {
            pid: title for pid in below(self.pid) if (title := _title(pid)).startswith("ray::")
        }
        sizes = {pid: resident_mb(pid) for pid in now}
        for pid, title in now.items():
            self.peaks[title] = max(self.peaks[title], sizes[pid])
        self.times.append(time.time())
        self.driver.append(sizes.pop(self.pid))
        self.worker.append(max(sizes.values(), default=0))

    def watch(self, stop: threading.Event) -> None:
        """Sample until ``stop`` is set."""
        while not stop.wait(EVERY_S):
            self.sample()


def below(pid: int) -> list[int]:
    """Process ids of all descendants."""
    found, queue = [], [pid]
    while queue:
        for task in Path(f"/proc/{queue.pop()}/task").glob("*/children"):
            children = [int(child) for child in _read(task).split()]
            found += children
            queue += children
    return found


def resident_mb(pid: int) -> int:
    """VmRSS; 0 of a process that has ended."""
    for line in _read(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    return 0


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all threads; 0 of one that has ended."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _title(pid: int) -> str:
    return _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ").strip()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""
