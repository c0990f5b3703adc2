"""Run as a script: ``python kill_points.py FOLDER SIGNAL``. Ends a commit at every disk call.

For n = 1, 2, ... a forked child gets the signal just before its n-th disk call, or half way through
it when it is a write; then another child runs the same work. A child that was only stopped, by
SIGSTOP, goes on after that. Prints one JSON object per point: whether the signal struck, the wait
statuses, and the digests of all ledger files at the end.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from rows import IDM, decide_all, make_labels, parents

from dynamics.core.records import LABEL_SCHEMA
from dynamics.storage.ledger import Ledger
from dynamics.storage.shards import Shard

CALLS = ("open", "write", "fsync", "replace", "link", "mkdir", "unlink")
LABELS = make_labels(40)


def label_and_commit(root: Path) -> None:
    """One round: two shards of attempts as far as they are not durable yet, then the commit."""
    ledger = Ledger(root / "ledger")
    done = ledger.attempted(1, IDM)
    for start in (0, 20):
        shard = Shard(start=start, stop=start + 20)
        if shard not in done:
            ledger.write_attempt(1, LABELS.slice(start, 20), shard)
    merged = ledger.merge(1, IDM, root / "labels.json")
    (rows,) = ledger.merged(merged, LABEL_SCHEMA.names)
    ledger.commit(1, merged, [decide_all(rows)], parents())


def strike_at(point: int, number: int) -> None:
    """Patch the disk calls of this process so that the ``point``-th one brings it a signal."""
    seen = count(1)

    def patched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(seen) != point:
                return call(*args, **kwargs)
            if name == "write":
                descriptor, payload = args
                written = call(descriptor, payload[: len(payload) // 2])
                os.kill(os.getpid(), number)
                return written
            os.kill(os.getpid(), number)
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, patched(name, getattr(os, name)))


def start_child(root: Path, point: int | None = None, number: int = 0) -> int:
    """A forked child that does the work. Arrow starts its threads only there."""
    child = os.fork()
    if child == 0:
        try:
            if point is not None:
                strike_at(point, number)
            label_and_commit(root)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def status_of(child: int) -> int:
    """Wait status of a child that ended, or was stopped."""
    return os.waitpid(child, os.WUNTRACED)[1]


def ledger_digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in (root / "ledger").rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix != ".tmp"
    }


def main() -> None:
    number = signal.Signals[sys.argv[2]]
    for point in count(1):
        root = Path(sys.argv[1]) / str(point)
        root.mkdir()
        child = start_child(root, point, number)
        status = status_of(child)
        statuses = [status_of(start_child(root))]
        if os.WIFSTOPPED(status):
            os.kill(child, signal.SIGCONT)
            statuses.append(status_of(child))
        line = {"point": point, "struck": status != 0, "statuses": statuses}
        sys.stdout.write(json.dumps({**line, "files": ledger_digests(root)}) + "\n")
        shutil.rmtree(root)
        if status == 0:
            return


if __name__ == "__main__":
    main()
