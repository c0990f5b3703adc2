"""Decode workers: `dynamics.data.video.worker` in long-lived, guarded child processes."""

import base64
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import check_machine
from dynamics.data.video.decode import (
    MAX_CLIP_BYTES,
    MIN_BYTES_PER_S,
    Bars,
    ClipFrames,
    DecodeSpec,
    Ends,
    Film,
    FilmSpec,
    used_frames,
)
from dynamics.data.video.keyframes import Pair
from dynamics.data.video.worker import HEADER, REQUEST
from dynamics.storage.files import sha256_file

_Answer = TypeVar("_Answer")

START_TIMEOUT_S = 60.0
_MAX_HEADER_BYTES = 1 << 24
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


class _NotOpened(Exception):  # noqa: N818 - an outcome of a request
    """A file that the system does not give; ``str`` says why."""


class DecodeWorker:
    """One child process; replaced after a clip that killed or hung it."""

    def __init__(self, *, memory_mb: int, timeout_s: float, cpu_per_s: float = 5.0) -> None:
        self._memory_mb = memory_mb
        self._timeout_s = timeout_s
        self._cpu_per_s = cpu_per_s
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._interrupted = False
        self.unsealed: str | None = None
        """Why the child is held by limits alone; None where it can open nothing by itself."""

    @property
    def pid(self) -> int:
        """The child's process id; starts it when there is none."""
        self._process = self._process or self._start()
        return self._process.pid

    def decode(self, path: Path, spec: DecodeSpec, shown_px: int = 0) -> ClipFrames | Rejected:
        """Read one clip, as `read_clip`; never raises for what is in the file.

        ``timeout`` is too much processor time for the clip's length, or none within the time limit;
        ``decoder_crashed`` is any other death.
        """
        request = {"kind": "clip", "spec": asdict(spec), "shown_px": shown_px}
        largest = max(spec.top_k * spec.frame_px**2 * 3, MAX_CLIP_BYTES)
        largest += largest * shown_px**2 // spec.frame_px**2
        return self._ask(
            request, largest, lambda answer, pixels: _parse(answer, pixels, spec, shown_px), path
        )

    def film(self, path: Path, spec: FilmSpec) -> Film | Rejected:
        """A part of a clip, as `read_film`; rejects as `decode`."""
        request = {"kind": "film", "film": asdict(spec)}
        return self._ask(
            request, spec.largest, lambda answer, pixels: _parse_film(answer, pixels, spec), path
        )

    def segment(
        self, path: Path, span_s: tuple[float, float] | None, frame_px: int, bars: Bars = None
    ) -> Ends | Rejected:
        """The two ends of a video, or of a segment of it; rejects as `decode`."""
        request = {"kind": "segment", "span_s": span_s, "frame_px": frame_px, "bars": bars}
        return self._ask(request, 6 * frame_px**2, partial(_parse_ends, frame_px), path)

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
        video: Path | None = None,
    ) -> _Answer | Rejected:
        """Send a request whose reply has at most ``largest`` bytes of pixels.

        The child is handed ``video`` open: it cannot open anything itself.
        """
        if self._interrupted:
            raise InterruptedError("nobody waits for this clip any more")
        process = self._process = self._process or self._start()
        request |= {"cpu_s": math.ceil(self._timeout_s), "cpu_per_s": self._cpu_per_s}
        patience = _Patience(process, self._timeout_s, self._most_cpu_s(video))
        try:
            self._send(json.dumps(request).encode(), video)
            answer, pixels = self._receive(process, patience, largest)
            if "reason" in answer:
                return Rejected(reason=str(answer["reason"]), detail=str(answer["detail"]))
            return parse(answer, pixels)
        except _WorkerLost as error:
            self.close()
            return Rejected(reason=str(error))
        except TimeoutError:
            self.close()
            return Rejected(reason="timeout")
        except _NotOpened as error:
            return Rejected(reason="unreadable", detail=str(error))
        except (ConnectionError, ValueError, KeyError, TypeError) as error:
            # A worker that answers nonsense is as lost as a dead one.
            self.close()
            return Rejected(reason="decoder_crashed", detail=type(error).__name__)

    def _most_cpu_s(self, video: Path | None) -> float:
        """More than a sound child takes: a file that took it over may lift its own limit."""
        is_file = video is not None and video.is_file()
        film_s = video.stat().st_size / MIN_BYTES_PER_S if video and is_file else 0.0
        return 2 + math.ceil(self._timeout_s) + math.ceil(self._cpu_per_s * film_s)

    def _send(self, request: bytes, video: Path | None) -> None:
        descriptors = []
        if video is not None:
            try:
                descriptors = [os.open(video, os.O_RDONLY)]
            except OSError as error:
                check_machine(error)
                raise _NotOpened(error.strerror) from error
        assert self._requests is not None
        try:
            socket.send_fds(self._requests, [REQUEST.pack(len(request))], descriptors)
            self._requests.sendall(request)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

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
        for stream in (self._requests, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _PASSED_ENVIRONMENT if name in os.environ}
        self._requests, theirs = socket.socketpair()
        self._requests.settimeout(self._timeout_s)
        process = subprocess.Popen(
            # -P: modules in the working directory stay out of the import path.
            [sys.executable, "-P", "-m", "dynamics.data.video.worker", str(self._memory_mb)],
            stdin=theirs.fileno(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg's complaints; the verdicts come in the replies
            env={
                **environment,
                "PYTHONPATH": str(REPOSITORY_ROOT),
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )
        theirs.close()
        self._process = process
        patience = _Patience(process, START_TIMEOUT_S, START_TIMEOUT_S)
        try:
            self.unsealed = self._receive(process, patience, 0)[0]["open"]
        except _WorkerLost as error:
            self.close()
            raise RuntimeError(
                "the decode worker does not start; to see why, run: "
                f"{sys.executable} -m dynamics.data.video.worker {self._memory_mb}"
            ) from error
        return process

    def _receive(
        self, process: subprocess.Popen[bytes], patience: "_Patience", largest: int
    ) -> tuple[dict[str, Any], bytes]:
        text_bytes, pixel_bytes = HEADER.unpack(_read(process, HEADER.size, patience))
        if text_bytes > _MAX_HEADER_BYTES or pixel_bytes > largest:
            raise ValueError("reply too large")
        answer = json.loads(_read(process, text_bytes, patience))
        return answer, _read(process, pixel_bytes, patience)


class _Patience:
    """Time for a child's reply: as long as it computes, so that a busy machine changes nothing.

    Args:
        process: the child.
        seconds: the longest time without any processor time of the child.
        most_cpu_s: the most processor time.
    """

    def __init__(self, process: subprocess.Popen[bytes], seconds: float, most_cpu_s: float) -> None:
        self._pid = process.pid
        self._seconds = seconds
        self._spent_s = _cpu_s(self._pid)
        self._last_s = self._spent_s + most_cpu_s
        self._deadline = time.monotonic() + seconds

    def left_s(self) -> float:
        """Seconds until it is worth to look again; 0 or less when nobody waits any longer."""
        now = time.monotonic()
        if now >= self._deadline and self._spent_s < (spent_s := _cpu_s(self._pid)) < self._last_s:
            self._spent_s, self._deadline = spent_s, now + self._seconds
        return self._deadline - now


def _cpu_s(pid: int) -> float:
    """Processor time of a process; 0 where the system does not tell: then only the clock counts."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _read(process: subprocess.Popen[bytes], size: int, patience: _Patience) -> bytes:
    """Exactly ``size`` bytes of the child's replies."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pieces = bytearray()
    while len(pieces) < size:
        if (left_s := patience.left_s()) <= 0:
            raise _WorkerLost("timeout")
        if not poll.poll(left_s * 1000):
            continue
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


def _parse_film(answer: dict[str, Any], pixels: bytes, spec: FilmSpec) -> Film:
    """Check a reply, as `_parse`."""
    (count, height, width, _), (_, large_height, large_width, _) = answer["frames"], answer["ends"]
    flat, size = np.frombuffer(pixels, dtype=np.uint8), 3 * count * height * width
    times_s = tuple(float(time_s) for time_s in answer["times_s"])
    if len(times_s) != count or not 2 <= count <= len(spec.indices):
        raise ValueError("the reply contradicts itself")
    return Film(
        frames=flat[:size].reshape(count, height, width, 3),
        times_s=times_s,
        ends=flat[size:].reshape(2, large_height, large_width, 3),
    )


def _parse(answer: dict[str, Any], pixels: bytes, spec: DecodeSpec, shown_px: int) -> ClipFrames:
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
    flat, size = np.frombuffer(pixels, dtype=np.uint8), 3 * len(indices) * spec.frame_px**2
    frames = flat[:size].reshape(len(indices), spec.frame_px, spec.frame_px, 3)
    shown = flat[size:].reshape(len(indices) if shown_px else 0, shown_px, shown_px, 3)
    used = used_frames(pairs, rejected=shown_px > 0)
    if len(times_s) != len(indices) or used != set(indices):
        raise ValueError("the reply contradicts itself")
    return ClipFrames(frames=frames, shown=shown, indices=indices, times_s=times_s, pairs=pairs)


def why_unsealed(memory_mb: int) -> str | None:
    """Why workers are held by limits alone on this machine, tried; None where they are sealed."""
    worker = DecodeWorker(memory_mb=memory_mb, timeout_s=START_TIMEOUT_S)
    worker._start()
    worker.close()
    return worker.unsealed


_idle: dict[tuple[int, float, float], list[DecodeWorker]] = {}
_busy: set[DecodeWorker] = set()
_lock = threading.Lock()


@contextmanager
def decoder(memory_mb: int, timeout_s: float, cpu_per_s: float = 5.0) -> Iterator[DecodeWorker]:
    """A worker of this process that nobody else uses; it is kept for the next one who asks."""
    with _lock:
        waiting = _idle.setdefault((memory_mb, timeout_s, cpu_per_s), [])
        new = DecodeWorker(memory_mb=memory_mb, timeout_s=timeout_s, cpu_per_s=cpu_per_s)
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


def read_clip_file(
    path: Path, spec: DecodeSpec, worker: DecodeWorker, shown_px: int = 0
) -> ReadClip:
    """Digest and key frames of a clip's file."""
    try:
        sha256 = sha256_file(path)
    except OSError as error:
        check_machine(error)
        return unreadable(error)
    return ReadClip(sha256=sha256, result=worker.decode(path, spec, shown_px))


def unreadable(error: OSError) -> ReadClip:
    """The reject of a file that the system does not give."""
    return ReadClip(sha256="", result=Rejected(reason="unreadable", detail=str(error.strerror)))
