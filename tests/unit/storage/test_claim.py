import json
import signal
import subprocess
import sys
import time

import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.places import StorePath
from dynamics.storage import claim
from dynamics.storage.claim import RunFolderInUseError, claimed
from dynamics.storage.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_BEAT_S", 0.1)
    monkeypatch.setattr(claim, "_SILENCE_S", 1.0)


def test_a_folder_of_a_store_is_held_by_one_driver_and_free_at_once_after_it(s3: StorePath) -> None:
    for _ in range(2):
        start = time.monotonic()
        with (
            RunFolder(s3).claimed(LoopConfig()),
            pytest.raises(RunFolderInUseError, match=r"in use by process \d+ on "),
        ):
            RunFolder(s3).claimed(LoopConfig()).__enter__()
        assert time.monotonic() - start < 3
    claims = sorted(path.name for path in (s3 / "lock").iterdir())
    assert claims == ["00000001.json", "00000002.json", "beat.json"]


_HOLD = """
import sys, time
from dynamics.core.places import StorePath
from dynamics.storage import claim
claim._BEAT_S = 0.1
with claim.claimed(StorePath(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_drivers_claim_is_taken_over_once_it_is_silent(s3: StorePath) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(s3)], stdout=subprocess.PIPE, cwd=REPOSITORY_ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(RunFolderInUseError, match=f"process {holder.pid} on"):
            claimed(s3).__enter__()
        holder.kill()
    start = time.monotonic()
    with claimed(s3):
        assert time.monotonic() - start >= 1.0


def test_a_holder_that_was_taken_over_stops(s3: StorePath) -> None:
    newer = json.dumps({"process": 7, "host": "elsewhere"}).encode()

    def held() -> None:
        with claimed(s3):
            (s3 / "lock" / "00000002.json").create(newer)
            time.sleep(10)

    # As the command does; a test in the background may not be open to Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    start = time.monotonic()
    with pytest.raises(RunFolderInUseError, match="in use by process 7 on elsewhere"):
        held()
    signal.signal(signal.SIGTERM, before)
    assert time.monotonic() - start < 5
