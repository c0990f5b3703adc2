"""Run as a script: ``python kill_points.py FOLDER``. SIGKILLs a round's commit at every disk call.

For n = 1, 2, ... a forked child gets SIGKILL just before its n-th disk call, or half way through
it when it is a write; then another child runs the same work. Prints one JSON object per point:
whether the child was killed, and the digests of all ledger files after the second run.
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


def kill_at(point: int) -> None:
    """Patch the disk calls of this process so that it does not survive the ``point``-th."""
    seen = count(1)

    def patched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(seen) != point:
                return call(*args, **kwargs)
            if name == "write":
                descriptor, payload = args
                call(descriptor, payload[: len(payload) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        return wrapper

    for name in CALLS:
        setattr(os, name, patched(name, getattr(os, name)))


def in_child(root: Path, *, killed_at: int | None) -> int:
    """Wait status of a forked child that did the work. Arrow starts its threads only there."""
    child = os.fork()
    if child == 0:
        try:
            if killed_at is not None:
                kill_at(killed_at)
            label_and_commit(root)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def ledger_digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in (root / "ledger").rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.suffix != ".tmp"
    }


def main() -> None:
    for point in count(1):
        root = Path(sys.argv[1]) / str(point)
        root.mkdir()
        status = in_child(root, killed_at=point)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        rerun = in_child(root, killed_at=None)
        line = {"point": point, "killed": killed, "rerun_status": rerun}
        sys.stdout.write(json.dumps({**line, "files": ledger_digests(root)}) + "\n")
        shutil.rmtree(root)
        if not killed:
            return


if __name__ == "__main__":
    main()
