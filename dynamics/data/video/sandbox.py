"""Decode workers: `dynamics.data.video.worker` in long-lived, guarded child processes."""

import base64
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.data.video.decode import Bars, ClipFrames, DecodeSpec, Ends
from dynamics.data.video.keyframes import Pair
from dynamics.data.video.worker import HEADER
from dynamics.storage.files import sha256_file

_Answer = TypeVar("_Answer")

START_TIMEOUT_S = 60.0
_MAX_HEADER_BYTES = 1 << 20
_PASSED_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
"""All that a decoder finds of our environment: a hostile file that took it over gets no keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The reason why a file cannot be used."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadClip:
    """A clip's digest and its key frames."""

    sha256: str
    result: ClipFrames | Rejected


class _WorkerLost(Exception):  # noqa: N818 - an outcome of a request
    """A worker that is gone; ``str`` is the reject reason of its clip."""


class DecodeWorker:
    """One child process; replaced after a clip that killed or hung it."""

    def __init__(self, *, memory_mb: int, timeout_s: float) -> None:
        self._memory_mb = memory_mb
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupted = False

    @property
    def pid(self) -> int:
        """The child's process id; starts it when there is none."""
        self._process = self._process or self._start()
        return self._process.pid

    def decode(self, path: Path, spec: DecodeSpec) -> ClipFrames | Rejected:
        """Read one clip; never raises for what is in the file.

        ``timeout`` also covers processor time; ``decoder_crashed`` is any other death.
        """
        request = {"kind": "clip", "path": str(path), "spec": asdict(spec)}
        largest = spec.top_k * spec.frame_px**2 * 3
        return self._ask(request, largest, lambda answer, pixels: _parse(answer, pixels, spec))

    def segment(
        self, path: Path, span_s: tuple[float, float] | None, frame_px: int, bars: Bars = None
    ) -> Ends | Rejected:
        """The two ends of a video, or of a segment of it; rejects as `decode`."""
        request = {
            "kind": "segment",
            "path": str(path),
            "span_s": span_s,
            "frame_px": frame_px,
            "bars": bars,
        }
        return self._ask(request, 6 * frame_px**2, partial(_parse_ends, frame_px))

    def pictures(
        self, source: bytes, target: bytes, frame_px: int, bars: Bars = None
    ) -> Ends | Rejected:
        """Two encoded pictures; rejects as `decode`."""
        payloads = [base64.b64encode(payload).decode() for payload in (source, target)]
        request = {"kind": "pictures", "payloads": payloads, "frame_px": frame_px, "bars": bars}
        return self._ask(request, 6 * frame_px**2, partial(_parse_ends, frame_px))

    def _ask(
        self,
        request: dict[str, Any],
        largest: int,
        parse: Callable[[dict[str, Any], bytes], _Answer],
    ) -> _Answer | Rejected:
        """Send a request whose reply has at most ``largest`` bytes of pixels."""
        if self._interrupted:
            raise InterruptedError("nobody waits for this clip any more")
        process = self._process = self._process or self._start()
        request |= {"cpu_s": math.ceil(self._timeout_s)}
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer, pixels = self._receive(process, self._timeout_s, largest)
            if "reason" in answer:
                return Rejected(reason=str(answer["reason"]), detail=str(answer["detail"]))
            return parse(answer, pixels)
        except _WorkerLost as error:
            self.close()
            return Rejected(reason=str(error))
        except (BrokenPipeError, ValueError, KeyError, TypeError) as error:
            # A worker that answers nonsense is as lost as a dead one.
            self.close()
            return Rejected(reason="decoder_crashed", detail=type(error).__name__)

    def interrupt(self) -> None:
        """Kill the child from another thread; its clip counts as crashed, the next one raises."""
        self._interrupted = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End the child; only while no clip is being read."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
        process = subprocess.Popen(
            # -P: modules in the working directory stay out of the import path.
            [sys.executable, "-P", "-m", "dynamics.data.video.worker", str(self._memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's complaints; the verdicts come in the replies
            env={
                **environment,
                "PYTHONPATH": str(REPOSITORY_ROOT),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        self._process = process
        try:
            self._receive(process, START_TIMEOUT_S, 0)
        except _WorkerLost as error:
            self.close()
            raise RuntimeError(
                "the decode worker does not start; to see why, run: "
                f"{sys.executable} -m dynamics.data.video.worker {self._memory_mb}"
            ) from error
        return process

    def _receive(
        self, process: subprocess.Popen[bytes], timeout_s: float, largest: int
    ) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_s
        text_bytes, pixel_bytes = HEADER.unpack(_read(process, HEADER.size, deadline))
        if text_bytes > _MAX_HEADER_BYTES or pixel_bytes > largest:
            raise ValueError("reply too large")
        answer = json.loads(_read(process, text_bytes, deadline))
        return answer, _read(process, pixel_bytes, deadline)


def _read(process: subprocess.Popen[bytes], size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes of the child's replies, by ``deadline``."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pieces = bytearray()
    while len(pieces) < size:
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise _WorkerLost("timeout")
        piece = os.read(descriptor, min(size - len(pieces), 1 << 20))
        if not piece:
            code = process.wait()
            raise _WorkerLost("timeout" if code == -signal.SIGXCPU else "decoder_crashed")
        pieces += piece
    return bytes(pieces)


def _parse_ends(frame_px: int, answer: dict[str, Any], pixels: bytes) -> Ends:
    """Check a reply, as `_parse`."""
    frames = np.frombuffer(pixels, dtype=np.uint8).reshape(2, frame_px, frame_px, 3)
    (first, last), (first_s, last_s) = answer["indices"], answer["times_s"]
    return Ends(
        frames=frames,
        indices=(int(first), int(last)),
        times_s=(float(first_s), float(last_s)),
    )


def _parse(answer: dict[str, Any], pixels: bytes, spec: DecodeSpec) -> ClipFrames:
    """Check a reply: it comes from the process that read the hostile file."""
    indices = tuple(int(index) for index in answer["indices"])
    times_s = tuple(float(time_s) for time_s in answer["times_s"])
    pairs = tuple(
        Pair(
            source=int(pair["source"]),
            target=int(pair["target"]),
            motion=float(pair["motion"]),
            verdict=pair["verdict"],
        )
        for pair in answer["pairs"]
    )
    shape = (len(indices), spec.frame_px, spec.frame_px, 3)
    frames = np.frombuffer(pixels, dtype=np.uint8).reshape(shape)
    accepted = [pair for pair in pairs if pair.verdict == "accepted"]
    used = {index for pair in accepted for index in (pair.source, pair.target)}
    if len(times_s) != len(indices) or used != set(indices):
        raise ValueError("the reply contradicts itself")
    return ClipFrames(frames=frames, indices=indices, times_s=times_s, pairs=pairs)


_idle: dict[tuple[int, float], list[DecodeWorker]] = {}
_busy: set[DecodeWorker] = set()
_lock = threading.Lock()


@contextmanager
def decoder(memory_mb: int, timeout_s: float) -> Iterator[DecodeWorker]:
    """A worker of this process that nobody else uses; it is kept for the next one who asks."""
    with _lock:
        waiting = _idle.setdefault((memory_mb, timeout_s), [])
        new = DecodeWorker(memory_mb=memory_mb, timeout_s=timeout_s)
        worker = waiting.pop() if waiting else new
        _busy.add(worker)
    try:
        yield worker
    finally:
        with _lock:
            _busy.discard(worker)
            waiting.append(worker)


def close_decoders() -> None:
    """End the workers of this process; reads in progress stop with an error."""
    with _lock:
        for worker in _busy:
            worker.interrupt()
        idle = [worker for waiting in _idle.values() for worker in waiting]
        _idle.clear()
    for worker in idle:
        worker.close()


def read_clip_file(path: Path, spec: DecodeSpec, worker: DecodeWorker) -> ReadClip:
    """Digest and key frames of a clip's file."""
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        return unreadable(error)
    return ReadClip(sha256=sha256, result=worker.decode(path, spec))


def unreadable(error: OSError) -> ReadClip:
    """The reject of a file that the system does not give."""
    return ReadClip(sha256="", result=Rejected(reason="unreadable", detail=str(error.strerror)))
