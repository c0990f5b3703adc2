"""Claims: at most one driver works in a run folder.

On this machine the kernel holds a lock. In a store the claim is kept by beating:

    lock/00000002.json   who claimed the folder, the second time; created if absent
    lock/beat.json       the newest claim and a number that its holder changes every few seconds

Who finds no new beat for a while makes the next claim; a holder that finds a newer claim than its
own stops. That is only to save work: what must not be doubled is created if absent, in any case.
"""

import fcntl
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dynamics.core.errors import UserError
from dynamics.core.places import Place, StorePath
from dynamics.storage.files import create_bytes, write_bytes

LOCKS = (".lock", "lock")
"""Names in a run folder that belong to its claim."""
_BEAT_S = 3.0
_SILENCE_S = 30.0


class RunFolderInUseError(UserError):
    """Another process runs in this folder; commands exit with status 3."""


@contextmanager
def claimed(root: Place) -> Iterator[None]:
    """Hold a run folder while the body runs.

    Raises:
        RunFolderInUseError: another process holds it, or has taken it over meanwhile.
    """
    if isinstance(root, StorePath):
        with _BeatingClaim(root).held():
            yield
        return
    # The kernel drops the lock with the process, also after kill -9: nothing to clean up.
    descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, root)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise _in_use(root, f"process {holder}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


class _BeatingClaim:
    """The claim of this process on a folder of a store."""

    def __init__(self, root: StorePath) -> None:
        self._root = root
        self._beat = root / "lock" / "beat.json"
        self._number = 0
        self._ended = threading.Event()
        self._lost = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make the next claim once the last one is silent; beat while the body runs."""
        newest = self._newest()
        if newest:
            self._wait_for_silence(newest)
        self._number = newest + 1
        if not create_bytes(self._claim(self._number), _me().encode()):
            raise _in_use(self._root, self._holder(self._number))
        beating = threading.Thread(target=self._keep_beating, daemon=True)
        beating.start()
        try:
            yield
        except KeyboardInterrupt as error:
            if self._lost:
                raise _in_use(self._root, self._holder(self._number + 1)) from error
            raise
        finally:
            self._ended.set()
            beating.join()
            if not self._lost:
                self._write_beat("over")

    def _keep_beating(self) -> None:
        while not self._ended.is_set():
            with suppress(UserError):  # a store that does not answer may do so again
                if self._claim(self._number + 1).is_file():
                    self._lost = True
                    # A signal also ends a wait of the main thread; nohup and jobs of a shell's
                    # background begin with Ctrl-C ignored.
                    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
                    os.kill(os.getpid(), signal.SIGTERM if ignored else signal.SIGINT)
                    return
                self._write_beat(secrets.token_hex(4))
            self._ended.wait(_BEAT_S)

    def _wait_for_silence(self, newest: int) -> None:
        """Return when the claim is over, or its holder has not beaten for long enough."""
        first, start = self._read_beat(), time.monotonic()
        while first != [newest, "over"] and time.monotonic() - start < _SILENCE_S:
            time.sleep(_BEAT_S / 4)
            if (beat := self._read_beat()) != first and beat != [newest, "over"]:
                raise _in_use(self._root, self._holder(newest))
            first = beat

    def _newest(self) -> int:
        claims = (self._root / "lock").glob("0*.json")
        return max((int(claim.stem) for claim in claims), default=0)

    def _claim(self, number: int) -> StorePath:
        return self._root / "lock" / f"{number:08d}.json"

    def _holder(self, number: int) -> str:
        try:
            found = json.loads(self._claim(number).read_bytes())
            return f"process {found['process']} on {found['host']}"
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return "another process"

    def _read_beat(self) -> list[object]:
        try:
            found = json.loads(self._beat.read_bytes())
        except (FileNotFoundError, ValueError):
            return []
        return found if isinstance(found, list) else []

    def _write_beat(self, beat: str) -> None:
        write_bytes(self._beat, json.dumps([self._number, beat]).encode())


def _me() -> str:
    return json.dumps({"process": os.getpid(), "host": socket.gethostname()}, sort_keys=True)


def _in_use(root: Place, holder: str) -> RunFolderInUseError:
    return RunFolderInUseError(
        f"run folder {root} is in use by {holder}; wait for it, or choose another run_dir"
    )
